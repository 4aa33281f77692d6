#!/bin/sh
# The postgres image runs this once, on an empty volume: it creates the second database and its user.
set -eu
psql -v ON_ERROR_STOP=1 -v password="$SCANQUEUE_DB_PASSWORD" --username "$POSTGRES_USER" --dbname postgres <<'SQL'
CREATE ROLE scanqueue LOGIN PASSWORD :'password';
CREATE DATABASE scanqueue OWNER scanqueue;
SQL
