-- A user who moves from node to node: of two nodes that tell of one user, the later one is right.

-- A node that has gone may have taken along users who are on another one too.
ALTER TABLE flow.presence_instances ADD COLUMN tell_again boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN flow.presence_instances.tell_again IS
    'Another node has gone since this one said that it lives: it is to tell of its users again.';

CREATE FUNCTION flow.end_presence(instance text, seconds double precision) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM flow.leave_presence(end_presence.instance, end_presence.seconds);
    UPDATE flow.presence_instances i SET tell_again = true WHERE i.instance <> end_presence.instance;
END
$$;
COMMENT ON FUNCTION flow.end_presence IS
    'Does for a node that has gone for good what leave_presence does; the others then tell of their users again.';

CREATE OR REPLACE FUNCTION flow.beat_presence(
    instance text, node text, seconds double precision, silence double precision, OUT silent boolean
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    dead text;
    since timestamptz := clock_timestamp() - make_interval(secs => beat_presence.silence);
BEGIN
    PERFORM flow.lock_presence();
    SELECT i.alive_at < since OR i.tell_again INTO silent
        FROM flow.presence_instances i WHERE i.instance = beat_presence.instance;
    silent := coalesce(silent, true);
    INSERT INTO flow.presence_instances AS i (instance, node)
        VALUES (beat_presence.instance, beat_presence.node)
        ON CONFLICT (instance) DO UPDATE SET alive_at = clock_timestamp(), tell_again = false;
    FOR dead IN
        SELECT i.instance FROM flow.presence_instances i
        WHERE i.alive_at < since AND i.instance <> beat_presence.instance
    LOOP
        PERFORM flow.end_presence(dead, beat_presence.seconds);
        silent := true;
    END LOOP;
    UPDATE flow.presence_instances i SET tell_again = false WHERE i.instance = beat_presence.instance
        AND i.tell_again;
END
$$;
COMMENT ON FUNCTION flow.beat_presence IS
    'Says that a node lives, and sees to the users of those that do not; gives whether it is to tell of its own again.';

-- What a node tells again, not knowing whether it was heard, may be older than what another one has told.

ALTER TABLE flow.user_presence ADD COLUMN told_of timestamptz NOT NULL DEFAULT '-infinity';
COMMENT ON COLUMN flow.user_presence.told_of IS
    'When that happened which was last told: what happened before it on another node is no news.';

CREATE OR REPLACE FUNCTION flow.record_presence(
    instance text, node text, attempt bigint,
    user_ids text[], statuses text[], ages double precision[], seen_ages double precision[]
) RETURNS boolean LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    PERFORM flow.lock_presence();
    UPDATE flow.presence_instances i SET attempt = record_presence.attempt
        WHERE i.instance = record_presence.instance AND i.attempt < record_presence.attempt;
    IF NOT FOUND THEN
        RETURN EXISTS (SELECT FROM flow.presence_instances i WHERE i.instance = record_presence.instance);
    END IF;
    -- Who comes back after their time was up has been offline, though nobody has noted it yet.
    PERFORM flow.expire_presence(cardinality(record_presence.user_ids), record_presence.user_ids);
    WITH now AS MATERIALIZED (
        SELECT clock_timestamp() AS now
    ), told AS (
        SELECT t.number, t.user_id, t.status, coalesce(p.status, 'offline') AS before,
            now.now - make_interval(secs => t.age) AS at,
            now.now - make_interval(secs => t.seen_age) AS last_seen
        FROM now, unnest(record_presence.user_ids, record_presence.statuses, record_presence.ages,
                    record_presence.seen_ages) WITH ORDINALITY t(user_id, status, age, seen_age, number)
        LEFT JOIN flow.user_presence p ON p.user_id = t.user_id
        WHERE p.instance IS NOT DISTINCT FROM record_presence.instance
            -- Who has gone to another node is that node's to tell of.
            OR (t.status <> 'offline' AND (
                p.user_id IS NULL OR p.status = 'offline' OR p.expires_at IS NOT NULL
                OR p.told_of <= now.now - make_interval(secs => t.age)
                OR p.told_of > now.now -- the clock was set back since
            ))
    ), kept AS (
        INSERT INTO flow.user_presence AS p (user_id, status, last_seen, node, instance, told_of)
            SELECT t.user_id, t.status, t.last_seen, record_presence.node, record_presence.instance, t.at
            FROM told t
            ORDER BY t.user_id
        ON CONFLICT (user_id) DO UPDATE SET
            status = excluded.status, last_seen = greatest(p.last_seen, excluded.last_seen),
            node = excluded.node, instance = excluded.instance, told_of = excluded.told_of,
            expires_at = NULL
    )
    INSERT INTO flow.presence_events (user_id, event, node, at)
        SELECT t.user_id, CASE WHEN t.status = 'offline' THEN 'offline' ELSE 'online' END,
            record_presence.node, t.at
        FROM told t
        WHERE (t.status = 'offline') <> (t.before = 'offline')
        ORDER BY t.number;
    IF FOUND THEN
        PERFORM pg_notify('flow_presence', '');
    END IF;
    RETURN true;
END
$$;
