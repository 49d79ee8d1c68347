#!/usr/bin/env bash
# backup.sh > limner.tar: everything that a server keeps, while it goes on serving.
#
# Reads LIMNER_DATA_DIR, LIMNER_MODEL_REPOSITORY and LIMNER_DATABASE_URL, as the server does; in its pod they are set:
#   kubectl -n limner exec deploy/limner -- bash -c "$(cat deploy/backup.sh)" > limner.tar
# The database comes first: files are written before the rows that name them, so each row of it finds its files. A cohort or
# a model that is deleted meanwhile may be in the database and not among the files.
# With --files the database is left out, for a PostgreSQL that is dumped elsewhere (before).
set -euo pipefail
: "${LIMNER_DATA_DIR:?is not set}" "${LIMNER_MODEL_REPOSITORY:?is not set}"
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
if [[ ${1:-} == --files ]]; then
  :
elif [[ -z ${LIMNER_DATABASE_URL:-} ]]; then
  # SQLite's own copy of a database that others write.
  python3 - "$LIMNER_DATA_DIR/limner.sqlite" "$parts/limner.sqlite" <<'PYTHON'
import sqlite3, sys
source, copy = (sqlite3.connect(f"file:{path}?mode={mode}", uri=True) for path, mode in zip(sys.argv[1:], ("ro", "rwc")))
source.backup(copy)
copy.close()
PYTHON
else
  pg_dump --format=custom --file="$parts/limner.pgdump" "$LIMNER_DATABASE_URL"
fi
ln -s "$(realpath "$LIMNER_DATA_DIR")" "$parts/data"
ln -s "$(realpath "$LIMNER_MODEL_REPOSITORY")" "$parts/models"
status=0
# servers/: locks of processes. 1: a file changed or went while it was read, as the checkpoints of a training do.
(cd "$parts" && tar --create --exclude='data/./limner.sqlite*' --exclude='data/./servers' --warning=no-file-changed \
  --warning=no-file-removed $(compgen -G 'limner.*') data/. models/.) || status=$?
((status <= 1))
