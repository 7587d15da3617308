-- The history of Sessions, and revoked tokens.

CREATE TABLE flow.sessions (
    session_id text PRIMARY KEY,
    user_id text NOT NULL,
    node text NOT NULL,
    connected_at timestamptz NOT NULL,
    ended_at timestamptz NOT NULL,
    duration_seconds double precision NOT NULL,
    reason text NOT NULL,
    connections integer NOT NULL,
    restarts integer NOT NULL,
    messages_received bigint NOT NULL
);
CREATE INDEX sessions_user_id ON flow.sessions (user_id, connected_at DESC);
COMMENT ON TABLE flow.sessions IS 'One row a finished Session. Old rows are the operator''s to delete.';
COMMENT ON COLUMN flow.sessions.duration_seconds IS
    'By a clock that nobody sets; connected_at is ended_at less this.';
COMMENT ON COLUMN flow.sessions.reason IS
    'window_expired, idle_timeout, session_stopped, drain, crashed, refused, abandoned, or an application''s own.';

CREATE TABLE flow.revoked_tokens (
    jti text CHECK (length(jti) BETWEEN 1 AND 256),
    user_id text CHECK (user_id ~ '^[A-Za-z0-9_.:@-]{1,128}$'),
    revoked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz,
    CONSTRAINT revoked_tokens_names_one CHECK (num_nonnulls(jti, user_id) = 1)
);
CREATE UNIQUE INDEX revoked_tokens_jti ON flow.revoked_tokens (jti) WHERE jti IS NOT NULL;
CREATE UNIQUE INDEX revoked_tokens_user_id ON flow.revoked_tokens (user_id) WHERE user_id IS NOT NULL;
CREATE INDEX revoked_tokens_expires_at ON flow.revoked_tokens (expires_at);
COMMENT ON TABLE flow.revoked_tokens IS
    'A row with a jti revokes that token; one with a user_id all that this user was given up to then.';
COMMENT ON COLUMN flow.revoked_tokens.revoked_at IS
    'Tokens of the user whose iat is in this second, or before it, are revoked.';
COMMENT ON COLUMN flow.revoked_tokens.expires_at IS
    'When the tokens that the row revokes have ended by themselves and the row may go; NULL for never.';
