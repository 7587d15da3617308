-- Batches of pushes, keys that are forgotten, expiry, collapsing, receipts, subscriptions, the undelivered.

CREATE TABLE flow.idempotency_keys (
    user_id text NOT NULL,
    key text NOT NULL,
    digest bytea NOT NULL,
    id uuid NOT NULL,
    seq bigint NOT NULL,
    inserted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (user_id, key)
);
CREATE INDEX idempotency_keys_inserted_at ON flow.idempotency_keys (inserted_at);
COMMENT ON TABLE flow.idempotency_keys IS
    'Under which key a notification was pushed and what it said, for 24 hours.';

ALTER TABLE flow.notifications
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN collapse_key text,
    ADD COLUMN delivered_at timestamptz,
    -- Of what there is already nobody knows whether it was received: none of it is to be found undelivered.
    ADD COLUMN undelivered_at timestamptz DEFAULT now(),
    ADD COLUMN undelivered_number bigint;
ALTER TABLE flow.notifications ALTER COLUMN undelivered_at DROP DEFAULT;
COMMENT ON COLUMN flow.notifications.expires_at IS 'From then on it is neither listed, nor counted, nor sent.';
COMMENT ON COLUMN flow.notifications.collapse_key IS
    'A newer notification with the same one takes the place of this one while it is unread.';
COMMENT ON COLUMN flow.notifications.delivered_at IS
    'When a client of the user first proved that it had it: by ack, or by the Pong to our Ping.';
COMMENT ON COLUMN flow.notifications.undelivered_at IS
    'When it was found that nobody had got it in time; see the view flow.undelivered. Without a number: not known.';

CREATE UNIQUE INDEX notifications_collapse_key ON flow.notifications (user_id, collapse_key)
    WHERE collapse_key IS NOT NULL AND read_at IS NULL;
CREATE INDEX notifications_expires_at ON flow.notifications (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX notifications_expiring ON flow.notifications (user_id, expires_at)
    WHERE expires_at IS NOT NULL AND read_at IS NULL;
CREATE INDEX notifications_waiting ON flow.notifications (inserted_at)
    WHERE delivered_at IS NULL AND read_at IS NULL AND undelivered_at IS NULL;
CREATE UNIQUE INDEX notifications_undelivered ON flow.notifications (undelivered_number)
    WHERE undelivered_number IS NOT NULL;
-- What has no summary yet is read each time that old notifications are looked for.
CREATE INDEX notifications_inserted_at ON flow.notifications USING brin (inserted_at)
    WITH (autosummarize = on);

CREATE TABLE flow.subscriptions (
    user_id text NOT NULL CHECK (user_id ~ '^[A-Za-z0-9_.:@-]{1,128}$'),
    pattern text NOT NULL CHECK (pattern ~ '^[^*]{0,127}(\*|[^*])$'),
    PRIMARY KEY (user_id, pattern)
);
COMMENT ON TABLE flow.subscriptions IS
    'Which types of notifications are sent live to a user: a type, or a beginning and a star. All, without a row.';

CREATE FUNCTION flow.wants(user_id text, type text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(bool_or(
        CASE WHEN right(s.pattern, 1) = '*' THEN starts_with(wants.type, left(s.pattern, -1))
             ELSE s.pattern = wants.type END
    ), true)
    FROM flow.subscriptions s WHERE s.user_id = wants.user_id
$$;
COMMENT ON FUNCTION flow.wants IS 'Whether notifications of a type are sent live to a user.';

-- What two pushes under one key must have in common.
CREATE FUNCTION flow.digest(type text, payload jsonb, expires_at timestamptz, collapse_key text) RETURNS bytea
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT sha256(convert_to(
        jsonb_build_array(type, payload, extract(epoch FROM expires_at), collapse_key)::text, 'UTF8'
    ))
$$;

INSERT INTO flow.idempotency_keys (user_id, key, digest, id, seq, inserted_at)
    SELECT user_id, idempotency_key, flow.digest(type, payload, NULL, NULL), id, seq, inserted_at
    FROM flow.notifications WHERE idempotency_key IS NOT NULL;
ALTER TABLE flow.notifications DROP COLUMN idempotency_key;

-- A row that somebody else's transaction is adding cannot be seen and skipped, only run into: half of the
-- rows are tried again, then the other half, until those that stand in the way are left out.
CREATE FUNCTION flow.make_inboxes(user_ids text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '5ms' AS $$
DECLARE
    half int := cardinality(user_ids) / 2;
BEGIN
    INSERT INTO flow.inboxes (user_id, last_seq, unread)
        SELECT u, 0, 0 FROM unnest(user_ids) u ON CONFLICT DO NOTHING;
EXCEPTION WHEN lock_not_available THEN
    IF half > 0 THEN
        PERFORM flow.make_inboxes(user_ids[:half]);
        PERFORM flow.make_inboxes(user_ids[half + 1:]);
    END IF;
END
$$;
COMMENT ON FUNCTION flow.make_inboxes IS
    'Adds inboxes that there are not yet, but for those that somebody else is adding.';

-- Many pushes in one transaction. Push number n, from 1, is the n-th of types, payloads and so on; pairs of
-- pushes and user_ids say to whom each goes. A push is stored for all of its users or for none of them.
-- outcome: stored; known, for a user who had it under its key before; conflict, where a key was used for
-- something else; busy, where somebody else's transaction holds the inbox and wait is false.
CREATE FUNCTION flow.append(
    pushes int[], user_ids text[], types text[], payloads jsonb[], idempotency_keys text[],
    expires_at timestamptz[], collapse_keys text[], wait boolean
) RETURNS TABLE (push int, user_id text, id uuid, seq bigint, outcome text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    targets text[];
    missing text[];
    held text[];
    refused int[] := '{}';
    fresh_pushes int[];
    fresh_users text[];
BEGIN
    IF EXISTS (SELECT FROM unnest(append.user_ids) u WHERE u IS NULL OR u !~ '^[A-Za-z0-9_.:@-]{1,128}$') THEN
        RAISE EXCEPTION 'user_id must be 1 to 128 of A-Z a-z 0-9 _ . : @ -' USING ERRCODE = '22023';
    END IF;
    IF EXISTS (SELECT FROM unnest(append.types) t WHERE coalesce(length(t), 0) NOT BETWEEN 1 AND 128) THEN
        RAISE EXCEPTION 'type must be 1 to 128 characters' USING ERRCODE = '22023';
    END IF;
    IF EXISTS (SELECT FROM unnest(append.payloads) p WHERE p IS NULL OR octet_length(p::text) > 65536) THEN
        RAISE EXCEPTION 'payload must be JSON of at most 65536 bytes' USING ERRCODE = '22023';
    END IF;
    -- So short a text has no room for 33 levels.
    IF EXISTS (SELECT FROM unnest(append.payloads) p
               WHERE octet_length(p::text) > 65
                 AND jsonb_path_exists(p, 'strict $.**{32}.type() ? (@ == "array" || @ == "object")')) THEN
        RAISE EXCEPTION 'payload must be nested at most 32 levels deep' USING ERRCODE = '22023';
    END IF;
    IF EXISTS (SELECT FROM unnest(append.idempotency_keys) k WHERE length(k) NOT BETWEEN 1 AND 255) THEN
        RAISE EXCEPTION 'idempotency_key must be 1 to 255 characters' USING ERRCODE = '22023';
    END IF;
    IF EXISTS (SELECT FROM unnest(append.collapse_keys) k WHERE length(k) NOT BETWEEN 1 AND 128) THEN
        RAISE EXCEPTION 'collapse_key must be 1 to 128 characters' USING ERRCODE = '22023';
    END IF;

    -- First the inboxes that there are not yet, then the locks, both in the order of the ids: two callers
    -- cannot wait for each other, and who comes second sees what the first one stored.
    SELECT array_agg(DISTINCT u ORDER BY u) INTO targets FROM unnest(append.user_ids) u;
    SELECT array_agg(u ORDER BY u) INTO missing FROM unnest(targets) u
        WHERE NOT EXISTS (SELECT FROM flow.inboxes i WHERE i.user_id = u);
    IF append.wait THEN
        INSERT INTO flow.inboxes (user_id, last_seq, unread)
            SELECT u, 0, 0 FROM unnest(missing) WITH ORDINALITY m(u, n) ORDER BY n ON CONFLICT DO NOTHING;
        PERFORM FROM flow.inboxes i WHERE i.user_id = ANY (targets) ORDER BY i.user_id FOR UPDATE;
    ELSE
        IF missing IS NOT NULL THEN
            PERFORM flow.make_inboxes(missing);
        END IF;
        SELECT array_agg(l.user_id) INTO held FROM (
            SELECT i.user_id FROM flow.inboxes i WHERE i.user_id = ANY (targets)
            ORDER BY i.user_id FOR UPDATE SKIP LOCKED
        ) l;
        SELECT coalesce(array_agg(DISTINCT p.push), '{}') INTO refused
            FROM unnest(append.pushes, append.user_ids) p(push, user_id)
            WHERE NOT EXISTS (SELECT FROM unnest(held) h WHERE h = p.user_id);
        RETURN QUERY SELECT r, NULL::text, NULL::uuid, NULL::bigint, 'busy' FROM unnest(refused) r;
    END IF;

    SELECT array_agg(p.push), array_agg(p.user_id) INTO fresh_pushes, fresh_users
        FROM (SELECT DISTINCT push, user_id FROM unnest(append.pushes, append.user_ids) p(push, user_id)) p
        WHERE p.push <> ALL (refused);
    IF array_remove(append.idempotency_keys, NULL) <> '{}' THEN
        WITH known AS (
            SELECT p.push, k.digest = flow.digest(types[p.push], payloads[p.push], append.expires_at[p.push],
                                                  collapse_keys[p.push]) AS same
            FROM unnest(fresh_pushes, fresh_users) p(push, user_id)
            JOIN flow.idempotency_keys k ON k.user_id = p.user_id AND k.key = idempotency_keys[p.push]
                AND k.inserted_at > clock_timestamp() - interval '24 hours'
        )
        SELECT coalesce(array_agg(DISTINCT known.push), '{}') INTO refused FROM known WHERE NOT known.same;
        RETURN QUERY SELECT r, NULL::text, NULL::uuid, NULL::bigint, 'conflict' FROM unnest(refused) r;
        RETURN QUERY SELECT p.push, k.user_id, k.id, k.seq, 'known'
            FROM unnest(fresh_pushes, fresh_users) p(push, user_id)
            JOIN flow.idempotency_keys k ON k.user_id = p.user_id AND k.key = idempotency_keys[p.push]
                AND k.inserted_at > clock_timestamp() - interval '24 hours'
            WHERE p.push <> ALL (refused);
        SELECT array_agg(p.push), array_agg(p.user_id) INTO fresh_pushes, fresh_users
            FROM unnest(fresh_pushes, fresh_users) p(push, user_id)
            WHERE p.push <> ALL (refused) AND NOT EXISTS (
                SELECT FROM flow.idempotency_keys k
                WHERE k.user_id = p.user_id AND k.key = idempotency_keys[p.push]
                  AND k.inserted_at > clock_timestamp() - interval '24 hours'
            );
    END IF;
    IF fresh_pushes IS NULL THEN
        RETURN;
    END IF;
    IF array_remove(append.collapse_keys, NULL) <> '{}' THEN
        WITH replaced AS (
            DELETE FROM flow.notifications n
            USING unnest(fresh_pushes, fresh_users) p(push, user_id)
            WHERE n.user_id = p.user_id AND n.collapse_key = collapse_keys[p.push] AND n.read_at IS NULL
            RETURNING n.user_id
        )
        UPDATE flow.inboxes i SET unread = greatest(0, i.unread - r.count)
            FROM (SELECT user_id, count(*) FROM replaced GROUP BY user_id) r
            WHERE i.user_id = r.user_id;
    END IF;

    RETURN QUERY
        WITH fresh AS (
            SELECT p.push, p.user_id, row_number() OVER (PARTITION BY p.user_id ORDER BY p.push) AS nth,
                -- Of several in one call the last takes the place of the others at once.
                collapse_keys[p.push] IS NULL OR row_number() OVER (
                    PARTITION BY p.user_id, collapse_keys[p.push] ORDER BY p.push DESC
                ) = 1 AS stays
            FROM unnest(fresh_pushes, fresh_users) p(push, user_id)
        ), numbered AS (
            UPDATE flow.inboxes i
            SET unread = i.unread + c.staying,
                -- Rows may have come in by another way than this one.
                last_seq = c.count + greatest(i.last_seq, (
                    SELECT n.seq FROM flow.notifications n WHERE n.user_id = i.user_id
                    ORDER BY n.seq DESC LIMIT 1
                ))
            FROM (SELECT user_id, count(*), count(*) FILTER (WHERE stays) AS staying
                  FROM fresh GROUP BY user_id) c
            WHERE i.user_id = c.user_id
            RETURNING i.user_id, i.last_seq - c.count AS before
        ), made AS (
            SELECT f.push, f.user_id, gen_random_uuid() AS id, numbered.before + f.nth AS seq, f.stays
            FROM fresh f JOIN numbered ON numbered.user_id = f.user_id
        ), inserted AS (
            INSERT INTO flow.notifications (user_id, seq, id, type, payload, expires_at, collapse_key)
            SELECT m.user_id, m.seq, m.id, types[m.push], payloads[m.push], append.expires_at[m.push],
                   collapse_keys[m.push]
            FROM made m WHERE m.stays
        ), remembered AS (
            INSERT INTO flow.idempotency_keys AS k (user_id, key, digest, id, seq)
            SELECT m.user_id, idempotency_keys[m.push],
                   flow.digest(types[m.push], payloads[m.push], append.expires_at[m.push],
                               collapse_keys[m.push]),
                   m.id, m.seq
            FROM made m WHERE idempotency_keys[m.push] IS NOT NULL
            -- One that is 24 hours old.
            ON CONFLICT (user_id, key) DO UPDATE SET
                digest = excluded.digest, id = excluded.id, seq = excluded.seq,
                inserted_at = excluded.inserted_at
        )
        SELECT m.push, m.user_id, m.id, m.seq, 'stored' FROM made m;
    PERFORM pg_notify('flow_inbox', '');
END
$$;
COMMENT ON FUNCTION flow.append IS
    'Appends many notifications to many inboxes; flow.notify and flow.notify_many are the ways in.';

DROP FUNCTION flow.notify(text, text, jsonb, text);
DROP FUNCTION flow.notify_many(text[], text, jsonb, text);

CREATE FUNCTION flow.notify_many(
    user_ids text[], type text, payload jsonb, idempotency_key text DEFAULT NULL,
    expires_at timestamptz DEFAULT NULL, collapse_key text DEFAULT NULL
) RETURNS TABLE (user_id text, id uuid, seq bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    IF coalesce(cardinality(notify_many.user_ids), 0) = 0 THEN
        RETURN;
    END IF;
    RETURN QUERY SELECT a.user_id, a.id, a.seq FROM flow.append(
        array_fill(1, ARRAY[cardinality(user_ids)]), user_ids, ARRAY[notify_many.type],
        ARRAY[notify_many.payload], ARRAY[notify_many.idempotency_key], ARRAY[notify_many.expires_at],
        ARRAY[notify_many.collapse_key], true
    ) a WHERE a.outcome <> 'conflict';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the idempotency_key was used before, for another notification'
            USING ERRCODE = '23F09';
    END IF;
END
$$;
COMMENT ON FUNCTION flow.notify_many IS
    'Appends a notification to the inbox of each user; it reaches them if and only if this transaction commits.';

CREATE FUNCTION flow.notify(
    user_id text, type text, payload jsonb, idempotency_key text DEFAULT NULL,
    expires_at timestamptz DEFAULT NULL, collapse_key text DEFAULT NULL
) RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT seq FROM flow.notify_many(ARRAY[notify.user_id], notify.type, notify.payload,
                                     notify.idempotency_key, notify.expires_at, notify.collapse_key)
$$;
COMMENT ON FUNCTION flow.notify IS
    'Appends a notification to the inbox of one user and gives its seq; see flow.notify_many.';

CREATE FUNCTION flow.unread(user_id text) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT greatest(0, coalesce((SELECT i.unread FROM flow.inboxes i WHERE i.user_id = unread.user_id), 0) - (
        SELECT count(*) FROM flow.notifications n
        WHERE n.user_id = unread.user_id AND n.read_at IS NULL AND n.expires_at <= clock_timestamp()
    ))
$$;
COMMENT ON FUNCTION flow.unread IS 'How many notifications of a user are unread; those that have expired are not.';

DROP FUNCTION flow.mark_read(text, uuid[], bigint);

CREATE FUNCTION flow.mark_read(
    user_id text, ids uuid[], up_to_seq bigint, at_most int DEFAULT 1000000,
    OUT marked bigint, OUT unread bigint
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    PERFORM FROM flow.inboxes i WHERE i.user_id = mark_read.user_id FOR UPDATE;
    IF mark_read.ids IS NOT NULL THEN
        UPDATE flow.notifications n SET read_at = clock_timestamp()
            WHERE n.user_id = mark_read.user_id AND n.id = ANY (mark_read.ids) AND n.read_at IS NULL;
    ELSE
        UPDATE flow.notifications n SET read_at = clock_timestamp()
            WHERE n.user_id = mark_read.user_id AND n.seq IN (
                SELECT u.seq FROM flow.notifications u
                WHERE u.user_id = mark_read.user_id AND u.read_at IS NULL AND u.seq <= mark_read.up_to_seq
                ORDER BY u.seq LIMIT mark_read.at_most
            );
    END IF;
    GET DIAGNOSTICS marked = ROW_COUNT;
    UPDATE flow.inboxes i SET unread = greatest(0, i.unread - marked) WHERE i.user_id = mark_read.user_id;
    unread := flow.unread(mark_read.user_id);
END
$$;
COMMENT ON FUNCTION flow.mark_read IS
    'Marks notifications of one user as read, by id or the oldest up to a seq; gives how many, and the number still unread.';

CREATE VIEW flow.undelivered AS
    SELECT undelivered_number AS number, user_id, seq, id, type, payload, inserted_at, undelivered_at, delivered_at,
        expires_at
    FROM flow.notifications WHERE undelivered_number IS NOT NULL;
COMMENT ON VIEW flow.undelivered IS
    'One row for each notification that nobody got in time. Numbers grow in the order of commits; new ones come with NOTIFY flow_undelivered.';

CREATE SEQUENCE flow.undelivered_numbers;

CREATE FUNCTION flow.find_undelivered(after_seconds double precision, at_most int) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    found_now bigint;
BEGIN
    -- One at a time, until its commit: that is what puts the numbers in the order of commits.
    IF NOT pg_try_advisory_xact_lock(hashtextextended('flow.find_undelivered', 0)) THEN
        RETURN 0;
    END IF;
    WITH late AS (
        SELECT n.user_id, n.seq FROM flow.notifications n
        WHERE n.delivered_at IS NULL AND n.read_at IS NULL AND n.undelivered_at IS NULL
          AND n.inserted_at < clock_timestamp() - make_interval(secs => after_seconds)
          AND (n.expires_at IS NULL OR n.expires_at > clock_timestamp())
        ORDER BY n.inserted_at LIMIT at_most
        FOR UPDATE SKIP LOCKED
    )
    UPDATE flow.notifications n
        SET undelivered_at = clock_timestamp(), undelivered_number = nextval('flow.undelivered_numbers')
        FROM late WHERE n.user_id = late.user_id AND n.seq = late.seq;
    GET DIAGNOSTICS found_now = ROW_COUNT;
    IF found_now > 0 THEN
        PERFORM pg_notify('flow_undelivered', '');
    END IF;
    RETURN found_now;
END
$$;
COMMENT ON FUNCTION flow.find_undelivered IS
    'Puts what nobody got within so many seconds into the view flow.undelivered, and gives how many.';

CREATE FUNCTION flow.subscribe(user_id text, add text[], remove text[]) RETURNS text[]
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    patterns text[];
BEGIN
    INSERT INTO flow.subscriptions (user_id, pattern)
        SELECT subscribe.user_id, p FROM (SELECT DISTINCT p FROM unnest(subscribe.add) p ORDER BY p) p
        ON CONFLICT DO NOTHING;
    DELETE FROM flow.subscriptions s
        WHERE s.user_id = subscribe.user_id AND s.pattern = ANY (subscribe.remove);
    SELECT array_agg(s.pattern ORDER BY s.pattern) INTO patterns
        FROM flow.subscriptions s WHERE s.user_id = subscribe.user_id;
    IF cardinality(patterns) > 100 THEN
        RAISE EXCEPTION 'types: a user can have 100 subscriptions' USING ERRCODE = '22023';
    END IF;
    RETURN coalesce(patterns, '{}');
END
$$;
COMMENT ON FUNCTION flow.subscribe IS 'Changes which types of notifications are sent live to a user.';
