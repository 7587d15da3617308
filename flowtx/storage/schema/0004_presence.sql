-- Who is online, when everybody was last seen, and an event for each change between the two.

CREATE TABLE flow.presence_instances (
    instance text PRIMARY KEY,
    node text NOT NULL,
    alive_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempt bigint NOT NULL DEFAULT 0
);
COMMENT ON TABLE flow.presence_instances IS
    'The runs of nodes that live; one that does not say so for a while is taken for dead.';
COMMENT ON COLUMN flow.presence_instances.attempt IS
    'The highest attempt to record something: one that comes late is not carried out.';

CREATE TABLE flow.user_presence (
    user_id text PRIMARY KEY,
    status text NOT NULL CHECK (status IN ('online', 'away', 'offline')),
    last_seen timestamptz NOT NULL,
    node text NOT NULL,
    instance text NOT NULL,
    expires_at timestamptz
);
CREATE INDEX user_presence_expires_at ON flow.user_presence (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX user_presence_instance ON flow.user_presence (instance) WHERE status <> 'offline';
COMMENT ON TABLE flow.user_presence IS 'What was last told of each user; flow.presence shows it.';
COMMENT ON COLUMN flow.user_presence.expires_at IS
    'The user is offline from then on unless told of again: the node has stopped. NULL while it runs.';

CREATE VIEW flow.presence AS
    SELECT p.user_id,
        CASE WHEN p.expires_at <= clock_timestamp() THEN 'offline' ELSE p.status END AS status,
        CASE WHEN p.status = 'offline' THEN p.last_seen
             ELSE greatest(p.last_seen, i.alive_at) END AS last_seen,
        p.node
    FROM flow.user_presence p LEFT JOIN flow.presence_instances i ON i.instance = p.instance;
COMMENT ON VIEW flow.presence IS
    'Who is online, away or offline, and when each user was last seen: a few seconds ago for those who are here.';

CREATE TABLE flow.presence_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id text NOT NULL,
    event text NOT NULL CHECK (event IN ('online', 'offline')),
    node text NOT NULL,
    at timestamptz NOT NULL
);
CREATE INDEX presence_events_user_id ON flow.presence_events (user_id, id);
CREATE INDEX presence_events_at ON flow.presence_events USING brin (at);
COMMENT ON TABLE flow.presence_events IS
    'One row each time a user comes online or goes offline. Ids grow in the order of commits; new rows come with NOTIFY flow_presence.';
COMMENT ON COLUMN flow.presence_events.at IS
    'When it happened; while the database was away that may be long before the row was written.';

-- Whoever writes events, or what they follow from, holds this until the commit: that is what puts the ids
-- in the order of commits, and what makes online and offline take turns.
CREATE FUNCTION flow.lock_presence() RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(hashtextextended('flow.presence_events', 0))
$$;

CREATE FUNCTION flow.expire_presence(at_most int, only_users text[] DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    gone bigint;
BEGIN
    PERFORM flow.lock_presence();
    WITH late AS (
        SELECT p.user_id, p.expires_at FROM flow.user_presence p
        WHERE p.expires_at <= clock_timestamp()
          AND (only_users IS NULL OR p.user_id = ANY (only_users))
        ORDER BY p.expires_at, p.user_id LIMIT at_most
    ), expired AS (
        UPDATE flow.user_presence p SET status = 'offline', expires_at = NULL
        FROM late WHERE p.user_id = late.user_id
        RETURNING p.user_id, p.node, late.expires_at
    )
    INSERT INTO flow.presence_events (user_id, event, node, at)
        SELECT e.user_id, 'offline', e.node, e.expires_at FROM expired e ORDER BY e.expires_at, e.user_id;
    GET DIAGNOSTICS gone = ROW_COUNT;
    IF gone > 0 THEN
        PERFORM pg_notify('flow_presence', '');
    END IF;
    RETURN gone;
END
$$;
COMMENT ON FUNCTION flow.expire_presence IS 'Puts users offline whose time to come back is up, and gives how many.';

CREATE FUNCTION flow.record_presence(
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
    WITH told AS (
        SELECT t.number, t.user_id, t.status, coalesce(p.status, 'offline') AS before,
            p.instance IS NOT DISTINCT FROM record_presence.instance AS ours,
            clock_timestamp() - make_interval(secs => t.age) AS at,
            clock_timestamp() - make_interval(secs => t.seen_age) AS last_seen
        FROM unnest(record_presence.user_ids, record_presence.statuses, record_presence.ages,
                    record_presence.seen_ages) WITH ORDINALITY t(user_id, status, age, seen_age, number)
        LEFT JOIN flow.user_presence p ON p.user_id = t.user_id
    ), kept AS (
        INSERT INTO flow.user_presence AS p (user_id, status, last_seen, node, instance)
            SELECT t.user_id, t.status, t.last_seen, record_presence.node, record_presence.instance
            FROM told t
            -- Who has gone to another node is that node's to tell of.
            WHERE t.status <> 'offline' OR t.ours
            ORDER BY t.user_id
        ON CONFLICT (user_id) DO UPDATE SET
            status = excluded.status, last_seen = greatest(p.last_seen, excluded.last_seen),
            node = excluded.node, instance = excluded.instance, expires_at = NULL
    )
    INSERT INTO flow.presence_events (user_id, event, node, at)
        SELECT t.user_id, CASE WHEN t.status = 'offline' THEN 'offline' ELSE 'online' END,
            record_presence.node, t.at
        FROM told t
        WHERE (t.status = 'offline') <> (t.before = 'offline') AND (t.status <> 'offline' OR t.ours)
        ORDER BY t.number;
    IF FOUND THEN
        PERFORM pg_notify('flow_presence', '');
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION flow.record_presence IS
    'Keeps what a node tells of its users, each of whom is in there once; false where the node was taken for dead.';

CREATE FUNCTION flow.leave_presence(instance text, seconds double precision) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    PERFORM flow.lock_presence();
    UPDATE flow.user_presence p
        SET expires_at = clock_timestamp() + make_interval(secs => leave_presence.seconds),
            last_seen = greatest(p.last_seen, i.alive_at)
        FROM flow.presence_instances i
        WHERE i.instance = leave_presence.instance AND p.instance = i.instance
          AND p.status <> 'offline' AND p.expires_at IS NULL;
    DELETE FROM flow.presence_instances i WHERE i.instance = leave_presence.instance;
END
$$;
COMMENT ON FUNCTION flow.leave_presence IS
    'Gives the users of a node that stops, or is dead, so many seconds to be told of again.';

CREATE FUNCTION flow.beat_presence(
    instance text, node text, seconds double precision, silence double precision, OUT silent boolean
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    dead text;
    since timestamptz := clock_timestamp() - make_interval(secs => beat_presence.silence);
BEGIN
    PERFORM flow.lock_presence();
    SELECT i.alive_at < since INTO silent
        FROM flow.presence_instances i WHERE i.instance = beat_presence.instance;
    silent := coalesce(silent, true);
    INSERT INTO flow.presence_instances AS i (instance, node)
        VALUES (beat_presence.instance, beat_presence.node)
        ON CONFLICT (instance) DO UPDATE SET alive_at = clock_timestamp();
    FOR dead IN SELECT i.instance FROM flow.presence_instances i WHERE i.alive_at < since LOOP
        PERFORM flow.leave_presence(dead, beat_presence.seconds);
    END LOOP;
END
$$;
COMMENT ON FUNCTION flow.beat_presence IS
    'Says that a node lives, and sees to the users of those that do not; gives whether it was taken for dead itself.';
