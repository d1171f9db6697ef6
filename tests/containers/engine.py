"""Docker on a machine without it: Debian's packages, run as root in separate namespaces.

The machine itself does not change, and ports that containers publish are visible only inside,
unless they are requested here. When the engine ends, all of its containers end with it.
"""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from app.local.processes import free_ports
from tests.support.waiting import running, wait_until

SUITE = "trixie"
"""The first Debian whose Docker knows `start_interval`."""
PACKAGES = "docker.io,docker-cli,docker-compose,docker-buildx,iptables,iproute2,mount,prometheus"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
CGROUPS = Path("/sys/fs/cgroup")
TUN = Path("/dev/net/tun")
NO_MORE: dict[str, str] = {}
TOOLS = ("mmdebstrap", "slirp4netns", "unshare", "nsenter", "setpriv")

# In the namespaces, the tree becomes the root, with the checkout in it, and Docker runs there. The
# programs that it calls are in /usr/sbin, which may not be in the caller's path.
INSIDE = """
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /sys/fs/cgroup sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mkdir -p src .old
mount --bind "$2" src
mount -o remount,bind,ro src
pivot_root . .old
umount -l /.old
ip link set lo up
echo nameserver 10.0.2.3 >/etc/resolv.conf
exec dockerd --cgroup-parent "$3" --storage-driver overlay2
"""


def missing() -> list[str]:
    """What this machine lacks to run an engine."""
    lacks = [f"{tool} is not installed" for tool in TOOLS if not shutil.which(tool)]
    if os.geteuid():
        return [*lacks, "it takes root"]
    if not TUN.exists():
        lacks.append(f"there is no {TUN}")
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        lacks.append("the kernel has no overlay")
    namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "true"]
    with suppress(FileNotFoundError):
        if subprocess.run(namespaces, capture_output=True, check=False).returncode:
            lacks.append("it allows no namespaces")
    return lacks


class CommandFailed(Exception):
    """A command exited with a code other than 0; the text is its output."""


class Engine:
    """A Docker that is built and runs in a folder."""

    def __init__(self, home: Path, checkout: Path) -> None:
        self.tree = home / "tree"
        self.base = home / "debian.tar"
        self.log = home / "docker.log"
        self.pid = 0
        self._network = home / "network"
        self._checkout = checkout
        self._cgroup = f"/eventstream-test-{os.getpid()}"

    def make(self) -> None:
        """Build Docker's file tree, and next to it a Debian image, from Debian's packages."""
        # The machine reaches the network with these, so installations in the image do too.
        certificates = f"--customize-hook=upload {CERTIFICATES} /etc/machine.crt"
        with ThreadPoolExecutor() as pool:
            made = [
                pool.submit(_debian, self.tree, f"--include={PACKAGES}"),
                pool.submit(_debian, self.base, certificates),
            ]
            for each in made:
                each.result()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run Docker with the Debian image loaded."""
        # When this process ends, its children end, and with the pid namespace everything in it.
        end_too = ("setpriv", "--pdeathsig", "KILL")
        apart = (*end_too, "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child")
        script = ("sh", "-euc", INSIDE, "sh", str(self.tree), str(self._checkout), self._cgroup)
        try:
            with running(*apart, *script, log=self.log) as unshare:
                children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
                wait_until(children.read_text)
                self.pid = int(children.read_text())
                slirp = (*end_too, "slirp4netns", "--configure", "--mtu=65520")
                options = ("--disable-host-loopback", f"--api-socket={self._network}")
                log = self.log.with_name("network.log")
                with running(*slirp, *options, str(self.pid), "tap0", log=log):
                    wait_until(lambda: unshare.poll() is not None or self._answers())
                    if unshare.poll() is not None:
                        raise CommandFailed(self.log.read_text())
                    with self.base.open("rb") as image:
                        self.run("docker", "import", "-", f"debian:{SUITE}", stdin=image.fileno())
                    yield
        finally:
            wait_until(lambda: not Path(f"/proc/{self.pid}").exists())
            self._remove_cgroups()

    def _answers(self) -> bool:
        with suppress(CommandFailed):
            return self._network.exists() and bool(self.run("docker", "version"))
        return False

    def run(
        self,
        *command: str,
        stdin: int = subprocess.DEVNULL,
        environment: Mapping[str, str] = NO_MORE,
    ) -> str:
        """The output of a command from the tree, run in the namespaces and in the checkout."""
        inside = ["nsenter", "--target", str(self.pid), "--mount", "--net", "--pid", "--root"]
        done = subprocess.run(
            [*inside, "--", "env", "--chdir=/src", *command],
            stdin=stdin,
            env={**environment, "HOME": "/root", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode:
            raise CommandFailed(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout

    def publish(self, port: int) -> int:
        """A port of this machine that leads to a port that a container publishes."""
        [outside] = free_ports(1)
        arguments = {
            "proto": "tcp",
            "host_addr": "127.0.0.1",
            "host_port": outside,
            "guest_port": port,
        }
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._network))
            connection.sendall(
                json.dumps({"execute": "add_hostfwd", "arguments": arguments}).encode()
            )
            answer = json.loads(connection.recv(4096))
        assert "return" in answer, answer
        return outside

    def _remove_cgroups(self) -> None:
        """Remove the control groups that Docker leaves behind on the machine."""
        for root in CGROUPS.rglob(self._cgroup.strip("/")):
            for folder, _, _ in os.walk(root, topdown=False):
                wait_until(partial(_removed, Path(folder)))


def _removed(group: Path) -> bool:
    """Try to remove a control group, which is busy until its last process has ended."""
    with suppress(OSError):
        group.rmdir()
    return not group.exists()


def _debian(target: Path, *options: str) -> None:
    """Build a Debian file tree, or an archive of one, from the essential packages."""
    command = ["mmdebstrap", "--variant=apt", "--dpkgopt=force-unsafe-io", *options]
    done = subprocess.run(
        [*command, SUITE, str(target)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        raise CommandFailed(done.stderr)
