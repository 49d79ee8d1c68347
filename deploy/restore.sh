#!/usr/bin/env bash
# restore.sh < limner.tar: put back what backup.sh took, before any server is started there.
#
# Reads the same three variables. Folders and database have to be empty: nothing is written over. Paths should be those of the
# server that was backed up, since a training that had not ended then goes on where its request says.
set -euo pipefail
: "${LIMNER_DATA_DIR:?is not set}" "${LIMNER_MODEL_REPOSITORY:?is not set}"
for folder in "$LIMNER_DATA_DIR" "$LIMNER_MODEL_REPOSITORY"; do
  mkdir -p "$folder"
  if [[ -n $(find "$folder" -mindepth 1 -maxdepth 1 ! -name lost+found -print -quit) ]]; then
    echo "restore.sh: $folder is not empty" >&2
    exit 1
  fi
done
parts=$(mktemp -d -p "$LIMNER_DATA_DIR") # on the volume: it is moved, not copied again
trap 'rm -rf "$parts"' EXIT
tar --extract --directory="$parts" --no-same-owner
if [[ -e $parts/limner.pgdump ]]; then
  pg_restore --exit-on-error --single-transaction --no-owner --dbname="${LIMNER_DATABASE_URL:?is not set}" "$parts/limner.pgdump"
elif [[ -e $parts/limner.sqlite ]]; then
  mv "$parts/limner.sqlite" "$LIMNER_DATA_DIR"
fi
find "$parts/data" -mindepth 1 -maxdepth 1 -exec mv -t "$LIMNER_DATA_DIR" {} +
find "$parts/models" -mindepth 1 -maxdepth 1 -exec mv -t "$LIMNER_MODEL_REPOSITORY" {} +
