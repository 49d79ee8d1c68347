#!/usr/bin/env bash
# pod.sh ROOT [SOURCE:PLACE[:ro]]... -- VARIABLE=VALUE... COMMAND...
# Runs a command in a root folder as a container of the manifests is run: its own mounts and processes, a root that cannot be
# written, an empty /tmp, the user 10001 without capabilities, and no environment but what is given. For `unshare` or `nsenter`
# to start, in namespaces of its own.
set -euo pipefail
root=$1
shift
ip link set lo up
mount --make-rprivate /
mount --bind "$root" "$root"
for folder in proc dev tmp; do mkdir -p "$root/$folder"; done
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
while [[ $1 != -- ]]; do
  IFS=: read -r source place options <<<"$1"
  if [[ -d $source ]]; then mkdir -p "$root$place"; else mkdir -p "$(dirname "$root$place")" && touch "$root$place"; fi
  mount --bind "$source" "$root$place"
  [[ -z $options ]] || mount -o "remount,bind,$options" "$root$place"
  shift
done
shift
mount -o remount,bind,ro "$root"
exec env --ignore-environment --chdir=/ "$(command -v chroot)" "$root" /usr/bin/setpriv --reuid=10001 --regid=10001 --clear-groups \
  --no-new-privs --bounding-set=-all --inh-caps=-all -- /usr/bin/env "$@"
