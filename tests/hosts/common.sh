# shellcheck shell=bash
# Read by prepare, run and can-run: names, messages, and what this machine allows.

# Programs and not packages decide what is missing: a machine may have its own build of one of them.
declare -A hosts_programs=(
  [podman]=podman [crun]=crun [nft]=nftables [iptables]=iptables [newuidmap]=uidmap
  [mmdebstrap]=mmdebstrap [catatonit]=catatonit [curl]=curl [ssh]=openssh-client
  [/usr/lib/podman/netavark]=netavark [/usr/lib/podman/aardvark-dns]=aardvark-dns
)

say() { printf 'test hosts: %s\n' "$*" >&2; }
# The last argument is the command that mends it.
stop() {
  say "$1"
  [[ $# -lt 2 ]] || printf '  mend it with:  %s\n' "$2" >&2
  exit 2
}

missing_packages() {
  local program
  {
    for program in "${!hosts_programs[@]}"; do
      command -v "$program" >/dev/null || echo "${hosts_programs[$program]}"
    done
    # Debian has it, Ubuntu does not: the signatures of the packages are checked with it.
    [[ -e /usr/share/keyrings/debian-archive-keyring.gpg ]] || echo debian-archive-keyring
  } | sort -u
}

# Without it a container may not be given higher limits, nor its device rules be loaded as a BPF program.
has_cap_sys_resource() {
  local capabilities
  capabilities=$(sed -n 's/^CapEff:\s*//p' /proc/self/status)
  (((16#$capabilities >> 24) & 1))
}

# systemd in a container needs the unified tree; so does crun, which refuses the hybrid one.
has_unified_cgroups() { [[ $(stat --file-system --format %T /sys/fs/cgroup) == cgroup2fs ]]; }

is_ordinary_machine() { has_unified_cgroups && has_cap_sys_resource; }

# Prints why no container can run here, or nothing.
obstacle() {
  if [[ $(uname -s) != Linux ]]; then
    echo "containers with systemd need Linux, this is $(uname -s)"
  elif ((EUID != 0)); then
    echo "containers with systemd and addresses of their own need root, this is user $(id -un)"
  elif ! command -v podman >/dev/null && ! command -v apt-get >/dev/null; then
    echo "there is neither podman nor apt-get to install it with"
  elif ! unshare --mount --net --pid --fork true 2>/dev/null; then
    echo "the kernel refuses new mount, network or process namespaces (CAP_SYS_ADMIN is missing)"
  elif ! is_ordinary_machine && ! unshare --mount --propagation private \
    mount -t cgroup2 none /sys/fs/cgroup 2>/dev/null; then
    echo "the cgroup2 tree cannot be mounted, and the one at /sys/fs/cgroup is of no use to systemd"
  fi
}

remove_containers() { # OPTIONS of podman ps
  local ids
  mapfile -t ids < <(podman ps --all --quiet "$@")
  [[ ${#ids[@]} -eq 0 ]] || podman rm --force --time 0 "${ids[@]}" >/dev/null
}

remove_networks() { # RUN
  local name bridge
  for name in $(podman network ls --quiet --filter "name=^fleet-test-$1-"); do
    bridge=$(podman network inspect --format '{{.NetworkInterface}}' "$name")
    podman network rm --force "$name" >/dev/null
    # It goes with its last host, unless the run was killed.
    [[ ! -e /sys/class/net/$bridge ]] || ip link delete "$bridge"
  done
}

signal_tree() { # SIGNAL PID: it and all its descendants, from the top, so that none can start another
  local descendants descendant
  descendants=$(pgrep --parent "$2") || descendants=
  kill -"$1" "$2" 2>/dev/null || return 0 # it has ended by itself
  for descendant in $descendants; do signal_tree "$1" "$descendant"; done
}

wait_for_end() { # PID; fails after a minute, in which some dozens of hosts can be removed
  local tenths
  for ((tenths = 0; tenths < 600; tenths++)); do
    kill -0 "$1" 2>/dev/null || return 0
    sleep 0.1
  done
  return 1
}
