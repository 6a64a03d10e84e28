#!/bin/bash
# Runs one integration target of ansible-core as ansible-test does, in a copy of this machine that is thrown away: whatever a target
# installs, edits or leaves running is gone with its namespaces. Run by run.py under unshare(1) (mount, pid, uts, mostly net).
#
#   sandbox.sh VENV TREE CONFIG OVER WHEELS TARGET
#
#   CONFIG   an ansible.cfg          OVER   ssh or local: how testhost is reached
#   WHEELS   a folder with what pip is to find where there is no network
set -eu
venv=$1 tree=$2 config=$3 over=$4 wheels=$5 target=$6

if [ -z "${INSIDE:-}" ]; then
    mount -t tmpfs -o mode=755 tmpfs /mnt
    mkdir /mnt/upper /mnt/work /mnt/root
    mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
    mount -t proc proc /mnt/root/proc
    mount --rbind /dev /mnt/root/dev
    mount --rbind /sys /mnt/root/sys
    mount -t tmpfs -o mode=1777 tmpfs /mnt/root/tmp # sockets of the real machine's programs are not for us
    mount -t tmpfs -o mode=755 tmpfs /mnt/root/run
    exec env -i INSIDE=1 HOME=/root USER=root LOGNAME=root LANG=C.UTF-8 PATH="$venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
        chroot /mnt/root "$0" "$@"
fi

exec 2>&1 </dev/null
unset INSIDE
hostname core-targets
grep -q core-targets /etc/hosts || echo 127.0.0.1 core-targets >>/etc/hosts
if [ "$(ip -o link | wc -l)" = 1 ]; then
    ip link set lo up
    port=22
    printf '[global]\nno-index = true\nfind-links = %s\n' "$wheels" >/etc/pip.conf
else # the network is the real machine's
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
fi

rm -f /usr/lib/python3*/EXTERNALLY-MANAGED # targets install with the system's pip
[ ! -e /usr/share/i18n/locales/en_US ] || localedef -i en_US -f UTF-8 en_US.UTF-8
rm -f /root/.bashrc /root/.bash_profile /root/.profile # whoever owns this machine, his shell's start is not part of a target
mkdir -m 1777 /run/lock
mkdir -p -m 700 /run/sshd /root/.ssh /root/.ansible/test
key=/root/.ansible/test/id_rsa # where ansible-test looks for its own
ssh-keygen -q -m PEM -t rsa -N '' -f "$key"
cp "$key" /root/.ssh/id_rsa
cat "$key.pub" >>/root/.ssh/authorized_keys
ssh-keygen -A >/dev/null
printf 'UsePAM yes\nPermitRootLogin yes\nMaxStartups 200\nSubsystem sftp internal-sftp\n' >/run/sshd_config
/usr/sbin/sshd -f /run/sshd_config -p "$port" -E /run/sshd.log
for host in localhost 127.0.0.1 "[localhost]:$port" "[127.0.0.1]:$port"; do
    sed "s,^,$host ," /etc/ssh/ssh_host_*_key.pub >>/root/.ssh/known_hosts
done

# Some targets make a virtual environment and expect what the controller's Python has.
"$venv/bin/python" -c 'import site, sys, sysconfig; base = sys.base_prefix
print(site.getsitepackages()[0], file=open(sysconfig.get_path("purelib", vars={"base": base, "platbase": base}) + "/core-targets.pth", "w"))'

cd "$tree"
cp "$config" test/integration/integration.cfg
options=()
if [ "$over" = ssh ]; then
    # ansible-test reaches a target of the kind "controller" only by the local connection: here every target can be far away.
    sed -i 's,^context/controller,context/target,' test/integration/targets/*/aliases
    version=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    options=(--target "ssh:root@localhost:$port,python=$version@/usr/bin/python3")
fi
code=0
"$venv/bin/python" bin/ansible-test integration --color no --allow-destructive --allow-root --allow-unsupported --allow-unstable --allow-disabled \
    "${options[@]}" "$target" || code=$?
for log in /tmp/mitogen-mux-*/*.log; do
    [ -e "$log" ] && echo "== log of the daemon" && cat "$log"
done
exit "$code"
