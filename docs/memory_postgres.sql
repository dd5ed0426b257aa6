-- The memory's tables for PostgreSQL, 15 or later: those of twoclock.memory.schema, by name and column.
--
-- The statements of twoclock.memory.tables run on them with three differences: parameters are written %s, `undone` and
-- `live` stay integers, and the words of `entries(containing=...)` are matched by the index at the end instead of FTS5.
-- Ranking is not the database's: BM25 and cosines are computed by twoclock.memory.index on either one.
--
-- A write is one transaction that begins with:  LOCK TABLE events IN EXCLUSIVE MODE;
-- Readers go on; writers queue, so that a higher seq was committed later, which is what lets an index follow by seq.
-- Text in PostgreSQL cannot hold the character U+0000.

BEGIN;

CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);

CREATE TABLE events (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    at DOUBLE PRECISION NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    payload TEXT NOT NULL,
    target BIGINT REFERENCES events (seq)
);
CREATE INDEX events_target ON events (target) WHERE target IS NOT NULL;
CREATE INDEX events_action ON events (action);

CREATE TABLE touches (
    entry TEXT NOT NULL,
    seq BIGINT NOT NULL REFERENCES events (seq),
    PRIMARY KEY (entry, seq)
);
CREATE INDEX touches_seq ON touches (seq);

CREATE TABLE episodes (
    name TEXT PRIMARY KEY,
    payload TEXT NOT NULL,
    hash TEXT NOT NULL,
    at DOUBLE PRECISION NOT NULL
);

CREATE TABLE readings (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    at DOUBLE PRECISION NOT NULL,
    query TEXT NOT NULL,
    scope TEXT NOT NULL,
    shown TEXT NOT NULL,
    held TEXT NOT NULL
);

CREATE TABLE outcomes (
    reading TEXT NOT NULL REFERENCES readings (id),
    seq BIGINT NOT NULL REFERENCES events (seq),
    PRIMARY KEY (reading, seq)
);

-- The history only grows, whoever connects.
CREATE FUNCTION only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the history of a memory only grows: % of % refused', TG_OP, TG_TABLE_NAME;
END $$;
CREATE TRIGGER events_only_grow BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION only_grows();
CREATE TRIGGER touches_only_grow BEFORE UPDATE OR DELETE OR TRUNCATE ON touches
    FOR EACH STATEMENT EXECUTE FUNCTION only_grows();
CREATE TRIGGER episodes_only_grow BEFORE UPDATE OR DELETE OR TRUNCATE ON episodes
    FOR EACH STATEMENT EXECUTE FUNCTION only_grows();
CREATE TRIGGER readings_only_grow BEFORE UPDATE OR DELETE OR TRUNCATE ON readings
    FOR EACH STATEMENT EXECUTE FUNCTION only_grows();
CREATE TRIGGER outcomes_only_grow BEFORE UPDATE OR DELETE OR TRUNCATE ON outcomes
    FOR EACH STATEMENT EXECUTE FUNCTION only_grows();

-- What follows from the events.

CREATE TABLE undone (seq BIGINT PRIMARY KEY REFERENCES events (seq));

CREATE TABLE entries (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    text TEXT NOT NULL,
    scope_agent TEXT NOT NULL,
    scope_user TEXT NOT NULL,
    scope_task TEXT NOT NULL,
    scope_session TEXT NOT NULL,
    trust TEXT NOT NULL,
    reward DOUBLE PRECISION,
    created DOUBLE PRECISION NOT NULL,
    expires DOUBLE PRECISION,
    body TEXT NOT NULL,
    provenance TEXT NOT NULL,
    seen TEXT NOT NULL,
    replaces TEXT,
    live INTEGER NOT NULL,
    reason TEXT NOT NULL,
    replaced_by TEXT,
    adds INTEGER NOT NULL
);
CREATE INDEX entries_live ON entries (id) WHERE live = 1;
CREATE INDEX entries_words ON entries USING gin (to_tsvector('simple', key || ' ' || text));

CREATE TABLE effects (
    entry TEXT PRIMARY KEY,
    shown BIGINT NOT NULL,
    shown_sum DOUBLE PRECISION NOT NULL,
    shown_squares DOUBLE PRECISION NOT NULL,
    held BIGINT NOT NULL,
    held_sum DOUBLE PRECISION NOT NULL,
    held_squares DOUBLE PRECISION NOT NULL
);

CREATE TABLE vectors (
    entry TEXT NOT NULL,
    encoder TEXT NOT NULL,
    dimension INTEGER NOT NULL,
    vector BYTEA NOT NULL,
    PRIMARY KEY (entry, encoder)
);

COMMIT;
