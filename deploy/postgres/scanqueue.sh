#!/bin/sh
# The postgres image does this once, on an empty volume: it creates the second database and its user. The image runs the
# file if it is executable, and otherwise reads it into its own shell; the parentheses keep our options out of that shell.
(
set -eu
psql -v ON_ERROR_STOP=1 -v password="$SCANQUEUE_DB_PASSWORD" --username "$POSTGRES_USER" --dbname postgres <<'SQL'
CREATE ROLE scanqueue LOGIN PASSWORD :'password';
CREATE DATABASE scanqueue OWNER scanqueue;
SQL
)
