-- Users, inboxes and notifications.

CREATE TABLE flow.users (
    id text PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9_.:@-]{1,128}$'),
    name text NOT NULL,
    email text,
    inserted_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE flow.users IS 'The users, unless --users-query reads them from a table of the product.';

CREATE TABLE flow.inboxes (
    user_id text PRIMARY KEY CHECK (user_id ~ '^[A-Za-z0-9_.:@-]{1,128}$'),
    last_seq bigint NOT NULL,
    unread bigint NOT NULL
);
COMMENT ON TABLE flow.inboxes IS
    'One row a user. Its row lock puts the notifications of the user in the order of their commits.';

CREATE TABLE flow.notifications (
    user_id text NOT NULL,
    seq bigint NOT NULL,
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    type text NOT NULL,
    payload jsonb NOT NULL,
    idempotency_key text,
    inserted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    read_at timestamptz,
    -- Readers ask for what has become visible since their last look, whatever order commits came in.
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (user_id, seq)
);
CREATE UNIQUE INDEX notifications_id ON flow.notifications (id);
CREATE UNIQUE INDEX notifications_idempotency_key ON flow.notifications (user_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX notifications_unread ON flow.notifications (user_id, seq) WHERE read_at IS NULL;
CREATE INDEX notifications_xid ON flow.notifications (xid) INCLUDE (user_id);

-- Both functions run as their owner: a program that may use the schema may notify, and nothing more.

CREATE FUNCTION flow.notify_many(
    user_ids text[], type text, payload jsonb, idempotency_key text DEFAULT NULL
) RETURNS TABLE (user_id text, id uuid, seq bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    targets text[];
    fresh text[];
BEGIN
    SELECT array_agg(DISTINCT u ORDER BY u) INTO targets FROM unnest(notify_many.user_ids) u;
    IF targets IS NULL THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM unnest(targets) u WHERE u IS NULL OR u !~ '^[A-Za-z0-9_.:@-]{1,128}$') THEN
        RAISE EXCEPTION 'user_id must be 1 to 128 of A-Z a-z 0-9 _ . : @ -' USING ERRCODE = '22023';
    END IF;
    IF coalesce(length(notify_many.type), 0) NOT BETWEEN 1 AND 128 THEN
        RAISE EXCEPTION 'type must be 1 to 128 characters' USING ERRCODE = '22023';
    END IF;
    IF notify_many.payload IS NULL OR octet_length(notify_many.payload::text) > 65536 THEN
        RAISE EXCEPTION 'payload must be JSON of at most 65536 bytes' USING ERRCODE = '22023';
    END IF;
    IF length(notify_many.idempotency_key) NOT BETWEEN 1 AND 255 THEN
        RAISE EXCEPTION 'idempotency_key must be 1 to 255 characters' USING ERRCODE = '22023';
    END IF;

    IF notify_many.idempotency_key IS NULL THEN
        fresh := targets;
    ELSE
        -- The lock first: whoever comes second sees what the first one stored under the key.
        INSERT INTO flow.inboxes AS i (user_id, last_seq, unread)
            SELECT u, 0, 0 FROM unnest(targets) u ORDER BY u
            ON CONFLICT (user_id) DO UPDATE SET unread = i.unread;
        IF EXISTS (
            SELECT FROM flow.notifications n
            WHERE n.user_id = ANY (targets) AND n.idempotency_key = notify_many.idempotency_key
              AND (n.type <> notify_many.type OR n.payload <> notify_many.payload)
        ) THEN
            RAISE EXCEPTION 'the idempotency_key was used before, for another notification'
                USING ERRCODE = 'FX409';
        END IF;
        SELECT array_agg(u ORDER BY u) INTO fresh FROM unnest(targets) u
            WHERE NOT EXISTS (
                SELECT FROM flow.notifications n
                WHERE n.user_id = u AND n.idempotency_key = notify_many.idempotency_key
            );
        RETURN QUERY SELECT n.user_id, n.id, n.seq FROM flow.notifications n
            WHERE n.user_id = ANY (targets) AND n.idempotency_key = notify_many.idempotency_key;
    END IF;

    -- Always in the order of the ids, so that two callers cannot wait for each other.
    RETURN QUERY
        WITH numbered AS (
            INSERT INTO flow.inboxes AS i (user_id, last_seq, unread)
                SELECT u, 1, 1 FROM unnest(fresh) u ORDER BY u
                ON CONFLICT (user_id) DO UPDATE SET last_seq = i.last_seq + 1, unread = i.unread + 1
                RETURNING i.user_id, i.last_seq
        )
        INSERT INTO flow.notifications AS n (user_id, seq, type, payload, idempotency_key)
            SELECT numbered.user_id, numbered.last_seq, notify_many.type, notify_many.payload,
                   notify_many.idempotency_key
            FROM numbered
            RETURNING n.user_id, n.id, n.seq;
    PERFORM pg_notify('flow_inbox', '');
END
$$;
COMMENT ON FUNCTION flow.notify_many IS
    'Appends a notification to the inbox of each user; it reaches them if and only if this transaction commits.';

CREATE FUNCTION flow.notify(user_id text, type text, payload jsonb, idempotency_key text DEFAULT NULL)
RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT seq FROM flow.notify_many(ARRAY[notify.user_id], notify.type, notify.payload, notify.idempotency_key)
$$;
COMMENT ON FUNCTION flow.notify IS
    'Appends a notification to the inbox of one user and gives its seq; see flow.notify_many.';

CREATE FUNCTION flow.mark_read(user_id text, ids uuid[], up_to_seq bigint)
RETURNS bigint LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    marked bigint;
    remaining bigint;
BEGIN
    PERFORM FROM flow.inboxes i WHERE i.user_id = mark_read.user_id FOR UPDATE;
    UPDATE flow.notifications n SET read_at = clock_timestamp()
        WHERE n.user_id = mark_read.user_id AND n.read_at IS NULL
          AND (n.id = ANY (mark_read.ids) OR n.seq <= mark_read.up_to_seq);
    GET DIAGNOSTICS marked = ROW_COUNT;
    UPDATE flow.inboxes i SET unread = i.unread - marked WHERE i.user_id = mark_read.user_id
        RETURNING i.unread INTO remaining;
    RETURN coalesce(remaining, 0);
END
$$;
COMMENT ON FUNCTION flow.mark_read IS
    'Marks notifications of one user as read, by id or up to a seq, and gives the number still unread.';
