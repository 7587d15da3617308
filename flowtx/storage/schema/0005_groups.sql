-- Groups and their members.

CREATE TABLE flow.group_members (
    group_name text COLLATE "C" NOT NULL CHECK (group_name ~ '^[A-Za-z0-9_.:@-]{1,128}$'),
    user_id text COLLATE "C" NOT NULL CHECK (user_id ~ '^[A-Za-z0-9_.:@-]{1,128}$'),
    inserted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (group_name, user_id)
);
CREATE INDEX group_members_user_id ON flow.group_members (user_id);
COMMENT ON TABLE flow.group_members IS
    'Who may join the topic group:<group_name>, besides those whose token has it in its claim groups. '
    'Plain INSERT and DELETE take effect at once: a row is looked for at each join, and who loses theirs is sent away.';

-- Nobody waits for a row that is added: it is looked for when its user joins.
CREATE FUNCTION flow.group_members_removed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM pg_notify('flow_groups', '');
    ELSIF EXISTS (SELECT FROM removed) THEN
        PERFORM pg_notify('flow_groups', '');
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER deleted AFTER DELETE ON flow.group_members REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION flow.group_members_removed();
CREATE TRIGGER updated AFTER UPDATE ON flow.group_members REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION flow.group_members_removed();
CREATE TRIGGER truncated AFTER TRUNCATE ON flow.group_members
    FOR EACH STATEMENT EXECUTE FUNCTION flow.group_members_removed();
