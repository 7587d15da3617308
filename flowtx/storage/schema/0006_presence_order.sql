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
