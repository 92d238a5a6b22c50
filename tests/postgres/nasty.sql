-- A database of types, names and objects that hurt, for PostgreSQL 12 and later, extensions aside.
-- Run it in an empty database of encoding UTF8, as superuser; its role is shared by the cluster.

DO $$ BEGIN
    CREATE ROLE "nasty owner" NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$;

CREATE SCHEMA "Sales & Co";
CREATE SCHEMA "naïve/schema.with%dots" AUTHORIZATION "nasty owner";
COMMENT ON SCHEMA "Sales & Co" IS 'it''s a "comment" \ with
two lines';

CREATE TYPE mood AS ENUM ('sad', 'so-so', 'it''s "fine", really', 'glücklich');
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE DOMAIN short_text AS text NOT NULL DEFAULT 'none' CHECK (length(VALUE) < 50);
CREATE TYPE address AS (street text, number positive, tags text[]);
CREATE TYPE temperature AS RANGE (subtype = float8);

CREATE TABLE every_type (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    small smallint, whole integer, exact numeric(40, 20), approximate double precision, single real,
    truth boolean, letters char(5), words varchar(100), prose text, bytes bytea,
    moment timestamptz, local_time timestamp, day date, hour time, hour_zone timetz, span interval,
    uid uuid, document json, binary_document jsonb, mark xml, net inet, block cidr, mac macaddr,
    bits bit(5), more_bits bit varying(20), spot point, shape polygon, round circle, box_ box,
    numbers integer[], matrix text[][], moods mood[], feeling mood, natural_number positive,
    title short_text, home address, homes address[], days daterange, warmth temperature,
    spans tstzrange, steps int4multirange, words_vector tsvector, words_query tsquery, price money,
    place pg_lsn, doubled integer GENERATED ALWAYS AS (whole * 2) STORED
);
ALTER TABLE every_type DROP COLUMN place;
INSERT INTO every_type (
    small, whole, exact, approximate, single, truth, letters, words, prose, bytes, moment,
    local_time, day, hour, hour_zone, span, uid, document, binary_document, mark, net, block, mac,
    bits, more_bits, spot, shape, round, box_, numbers, matrix, moods, feeling, natural_number,
    title, home, homes, days, warmth, spans, steps, words_vector, words_query, price
) VALUES (
    -32768, 2147, -12345678901234567890.12345678901234567890, 'NaN', '-Infinity', true, 'a', '\N',
    E'tab\t newline\n return\r backslash\\ \\. quote '' "', '\x00ff0a0d5c2e00', 'infinity',
    '0044-03-15 12:00:00 BC', '5874897-12-31', '24:00:00', '23:59:59.999999-15:59',
    '-1 year -2 mons +3 days -04:05:06.789', '00000000-0000-0000-0000-000000000000',
    '{"b": 1, "a": [null, "\u00e9"],  "b": 2}', '{"a": 1e400, "": "\\"}', '<a>&lt;</a>',
    '::1/128', '10.0.0.0/8', '08:00:2b:01:02:03', '10101', '1', '(1e-300,-0)',
    '((0,0),(1,1),(1,0))', '<(0,0),5>', '((1,1),(0,0))', '[-1:1]={1,NULL,3}',
    '{{"a,b","c\"d"},{"{}","NULL"}}', '{sad,"it''s \"fine\", really"}', 'glücklich', 1, 'x',
    '("Straße, 1",7,"{a,b}")', '{"(x,1,{})","(,,)"}', 'empty', '[-273.15,)',
    '(,"2024-02-30 00:00"]'::text::varchar::text::tstzrange, '{[1,3),[7,9)}', '''a''''b'':1A',
    '!a & b:*', '-12.34'
) ON CONFLICT DO NOTHING;
