-- A small cellar whose restored copies the tests damage. For PostgreSQL 15 and 18.
CREATE TYPE colour AS ENUM ('red', 'white');
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN NEW.note := coalesce(NEW.note, 'tasted'); RETURN NEW; END $$;
CREATE TABLE growers (
    id integer PRIMARY KEY,
    -- PostgreSQL prints this check in other words once it has read it back.
    kind varchar(10) CHECK (kind IN ('estate', 'merchant')) DEFAULT 'estate'
);
CREATE TABLE wines (
    id bigserial PRIMARY KEY, grower integer REFERENCES growers, colour colour, note text
);
CREATE TRIGGER stamp BEFORE INSERT ON wines FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE INDEX wines_by_note ON wines (lower(note));
CREATE TABLE tastings (taken date, score integer) PARTITION BY RANGE (taken);
CREATE TABLE tastings_2024 PARTITION OF tastings FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE tastings_2025 PARTITION OF tastings FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE blends (
    base integer REFERENCES growers, part integer, share integer,
    parent integer, FOREIGN KEY (parent, part) REFERENCES blends (base, part),
    PRIMARY KEY (base, part)
);
CREATE VIEW red AS SELECT id FROM wines WHERE colour = 'red';
INSERT INTO growers (id) SELECT * FROM generate_series(1, 9);
INSERT INTO wines (grower, colour, note)
    SELECT n % 9 + 1, 'red', repeat('note ', n % 40) FROM generate_series(1, 500) AS n;
INSERT INTO tastings SELECT date '2024-06-01' + n, n % 7 FROM generate_series(0, 400) AS n;
INSERT INTO blends VALUES (1, 1, 50, NULL), (2, 1, 50, 1), (3, 7, 1, NULL);
SELECT lo_from_bytea(700001, 'a label'), lo_from_bytea(700002, decode(repeat('00ff', 20000), 'hex'));
