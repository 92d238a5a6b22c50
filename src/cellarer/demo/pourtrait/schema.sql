-- Pourtrait, a wine-cellar web app: the sample product. Plain SQL for PostgreSQL 15 and newer,
-- no extensions. It runs as a whole; the generator runs the first part, loads, then runs the rest.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'app_user') THEN
        CREATE ROLE app_user NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'app_readonly') THEN
        CREATE ROLE app_readonly NOLOGIN;
    END IF;
END
$$;

CREATE TYPE wine_type AS ENUM ('red', 'white', 'rose', 'sparkling', 'dessert', 'fortified');
CREATE TYPE experience_level AS ENUM ('beginner', 'intermediate', 'advanced', 'expert');

CREATE TABLE user_profiles (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    email text NOT NULL,
    display_name text NOT NULL,
    experience experience_level NOT NULL DEFAULT 'beginner',
    cellar_capacity integer NOT NULL DEFAULT 60,
    preferences jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE wines (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL,
    name text NOT NULL,
    producer text NOT NULL,
    region text NOT NULL,
    country text NOT NULL,
    type wine_type NOT NULL,
    grape_varieties text[] NOT NULL DEFAULT '{}',
    vintage smallint,
    price numeric(10, 2),
    currency char(3) NOT NULL DEFAULT 'EUR',
    purchased_on date,
    location text,
    quantity integer NOT NULL DEFAULT 1,
    drink_from smallint,
    drink_until smallint,
    external_data jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    search tsvector GENERATED ALWAYS AS (
        to_tsvector('simple'::regconfig, name || ' ' || producer || ' ' || region)
    ) STORED
);

CREATE TABLE taste_profiles (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL,
    preferences jsonb NOT NULL,
    flavour_vector jsonb NOT NULL,
    learned_from integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE consumption_history (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    wine_id uuid NOT NULL,
    user_id uuid NOT NULL,
    consumed_on date NOT NULL,
    rating numeric(2, 1),
    notes text,
    companions text[] NOT NULL DEFAULT '{}',
    occasion text,
    food text,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE ai_recommendations (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL,
    wine_id uuid,
    model text NOT NULL,
    prompt text NOT NULL,
    explanation text NOT NULL,
    response jsonb NOT NULL,
    confidence real NOT NULL,
    accepted boolean,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE notes (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    number bigint GENERATED ALWAYS AS IDENTITY,
    wine_id uuid NOT NULL,
    user_id uuid NOT NULL,
    title text NOT NULL,
    body text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- After the load: keys, indexes, triggers, views, policies and grants.

ALTER TABLE user_profiles
    ADD PRIMARY KEY (id),
    ADD UNIQUE (email),
    ADD CHECK (email LIKE '%_@_%'),
    ADD CHECK (cellar_capacity > 0);
ALTER TABLE wines
    ADD PRIMARY KEY (id),
    ADD FOREIGN KEY (user_id) REFERENCES user_profiles ON DELETE CASCADE,
    ADD CHECK (vintage BETWEEN 1900 AND 2100),
    ADD CHECK (price >= 0),
    ADD CHECK (quantity >= 0),
    ADD CONSTRAINT wines_drinking_window CHECK (drink_from <= drink_until);
ALTER TABLE taste_profiles
    ADD PRIMARY KEY (id),
    ADD UNIQUE (user_id),
    ADD FOREIGN KEY (user_id) REFERENCES user_profiles ON DELETE CASCADE,
    ADD CHECK (jsonb_typeof(flavour_vector) = 'array');
ALTER TABLE consumption_history
    ADD PRIMARY KEY (id),
    ADD FOREIGN KEY (wine_id) REFERENCES wines ON DELETE CASCADE,
    ADD FOREIGN KEY (user_id) REFERENCES user_profiles ON DELETE CASCADE,
    ADD CHECK (rating BETWEEN 1 AND 5);
ALTER TABLE ai_recommendations
    ADD PRIMARY KEY (id),
    ADD FOREIGN KEY (user_id) REFERENCES user_profiles ON DELETE CASCADE,
    ADD FOREIGN KEY (wine_id) REFERENCES wines ON DELETE SET NULL,
    ADD CHECK (confidence BETWEEN 0 AND 1);
ALTER TABLE notes
    ADD PRIMARY KEY (id),
    ADD UNIQUE (number),
    ADD FOREIGN KEY (wine_id) REFERENCES wines ON DELETE CASCADE,
    ADD FOREIGN KEY (user_id) REFERENCES user_profiles ON DELETE CASCADE;

CREATE INDEX wines_user_id ON wines (user_id);
CREATE INDEX wines_created_at ON wines (created_at);
CREATE INDEX wines_in_stock ON wines (user_id, drink_until) WHERE quantity > 0;
CREATE INDEX wines_search ON wines USING gin (search);
CREATE INDEX consumption_history_wine_id ON consumption_history (wine_id);
CREATE INDEX consumption_history_user_id ON consumption_history (user_id, consumed_on);
CREATE INDEX ai_recommendations_user_id ON ai_recommendations (user_id);
CREATE INDEX ai_recommendations_wine_id ON ai_recommendations (wine_id);
CREATE INDEX notes_wine_id ON notes (wine_id);
CREATE INDEX notes_user_id ON notes (user_id);

-- The time of an update is now, unless the update itself says otherwise.
CREATE FUNCTION touch_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.updated_at IS NOT DISTINCT FROM OLD.updated_at THEN
        NEW.updated_at := now();
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER touch BEFORE UPDATE ON user_profiles
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
CREATE TRIGGER touch BEFORE UPDATE ON wines
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
CREATE TRIGGER touch BEFORE UPDATE ON taste_profiles
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
CREATE TRIGGER touch BEFORE UPDATE ON notes
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

CREATE VIEW ready_to_drink WITH (security_barrier) AS
    SELECT id, user_id, name, producer, vintage, quantity, location, drink_until
    FROM wines
    WHERE quantity > 0
        AND extract(year FROM current_date) BETWEEN drink_from AND drink_until;

CREATE MATERIALIZED VIEW cellar_statistics AS
    SELECT user_id, type, count(*) AS wines, sum(quantity) AS bottles,
        sum(quantity * price) AS worth, min(vintage) AS oldest
    FROM wines
    GROUP BY user_id, type;
CREATE UNIQUE INDEX cellar_statistics_key ON cellar_statistics (user_id, type);

-- The app says on whose behalf it asks; nobody sees another one's cellar.
CREATE FUNCTION current_user_id() RETURNS uuid LANGUAGE sql STABLE
    RETURN nullif(current_setting('app.user_id', true), '')::uuid;

ALTER TABLE user_profiles ENABLE ROW LEVEL SECURITY;
ALTER TABLE wines ENABLE ROW LEVEL SECURITY;
ALTER TABLE taste_profiles ENABLE ROW LEVEL SECURITY;
ALTER TABLE consumption_history ENABLE ROW LEVEL SECURITY;
ALTER TABLE ai_recommendations ENABLE ROW LEVEL SECURITY;
ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON user_profiles TO app_user USING (id = current_user_id());
CREATE POLICY own ON wines TO app_user USING (user_id = current_user_id());
CREATE POLICY own ON taste_profiles TO app_user USING (user_id = current_user_id());
CREATE POLICY own ON consumption_history TO app_user USING (user_id = current_user_id());
CREATE POLICY own ON ai_recommendations TO app_user USING (user_id = current_user_id());
CREATE POLICY own ON notes TO app_user USING (user_id = current_user_id());
CREATE POLICY reporting ON wines FOR SELECT TO app_readonly USING (true);

GRANT USAGE ON SCHEMA public TO app_user, app_readonly;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app_user;
REVOKE ALL ON cellar_statistics FROM app_user;
GRANT SELECT ON wines, ready_to_drink, cellar_statistics TO app_readonly;

COMMENT ON TABLE wines IS 'Bottles that lie in somebody''s cellar, or once did.';
COMMENT ON COLUMN wines.external_data IS 'What the wine databases on the web say, as fetched.';
