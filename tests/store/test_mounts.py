"""The file system under a path, from the kernel's list of mounts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ksupervise.store.mounts import (
    MOUNTINFO,
    Mount,
    file_system,
    has_reliable_flock,
    is_shared,
    mount_of,
    resolved,
)

MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /proc rw,nosuid - proc proc rw
40 22 0:44 / /home rw,relatime shared:5 master:2 - nfs4 server:/home rw,vers=4.2
41 40 8:17 /scratch/me /home/me/scratch rw,relatime - xfs /dev/sdb1 rw
42 22 0:50 / /content/gdrive rw,nosuid,nodev - fuse.drive drive rw,user_id=0
43 22 0:51 / /mnt/with\040a\040blank\134and\011more rw - cifs //nas/share rw
44 22 0:52 / /homework rw - tmpfs tmpfs rw
45 22 0:53 / /old rw - lustre mds:/old rw
46 22 0:54 / /old/part rw - nfs server:/part rw
47 45 8:1 /var/new /old rw - ext4 /dev/sda1 rw
48 22 0:55 / /auto rw - autofs systemd-1 rw
49 48 0:56 / /auto rw - nfs server:/auto rw
50 22 0:57 / /strange rw - newfs none rw
51 22 0:58 / /ntfs rw - fuseblk /dev/sdc1 rw
52 22 0:59 / /podman rw - fuse.fuse-overlayfs fuse-overlayfs rw
not a line
53 22 nonsense
"""

NETWORKS = ("nfs", "nfs4", "lustre", "cifs", "smb3", "9p", "ceph", "gpfs", "beegfs", "fuse.drive", "fuse.sshfs", "fuse")


@pytest.fixture
def mountinfo(tmp_path: Path) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(MOUNTS)
    return path


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/usr/share", "ext4"),
        ("/home", "nfs4"),
        ("/home/me", "nfs4"),
        ("/home/me/scratch", "xfs"),
        ("/home/me/scratch/deep/er", "xfs"),
        ("/home/me/scratchy", "nfs4"),
        ("/homework/x", "tmpfs"),
        ("/homes", "ext4"),
        ("/content/gdrive/My Drive/model", "fuse.drive"),
        ("/mnt/with a blank\\and\tmore/run", "cifs"),
        ("/mnt/with", "ext4"),
        ("/old/file", "ext4"),
        ("/old/part/file", "ext4"),
        ("/auto/me", "nfs"),
    ],
)
def test_the_mount_that_a_path_leads_to(mountinfo: Path, path: str, kind: str) -> None:
    assert file_system(path, mountinfo) == kind


def test_a_symbolic_link_counts_for_where_it_leads(tmp_path: Path) -> None:
    tmp_path = tmp_path.resolve()
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    mountinfo = tmp_path / "mountinfo"
    lines = f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:9 / {tmp_path}/there rw - nfs4 server:/ rw\n"
    mountinfo.write_text(lines)
    assert file_system(tmp_path / "link" / "not made yet", mountinfo) == "nfs4"
    assert file_system(tmp_path, mountinfo) == "ext4"


@pytest.mark.parametrize("kind", NETWORKS)
def test_no_lock_is_trusted_beyond_this_machine(tmp_path: Path, kind: str) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"1 0 0:1 / / rw - {kind} source rw\n")
    assert not has_reliable_flock("/run", mountinfo)
    assert is_shared("/run", mountinfo) is (kind != "9p"), "9p is how a sandbox shows its own disk"


def test_local_and_unknown_ones(mountinfo: Path) -> None:
    for path in ("/x", "/home/me/scratch", "/homework", "/ntfs/x"):
        assert has_reliable_flock(path, mountinfo)
        assert not is_shared(path, mountinfo)
    for path in ("/strange/x", "/podman/x"):
        assert not has_reliable_flock(path, mountinfo), "unknown, and every FUSE: no lock is trusted"
        assert not is_shared(path, mountinfo), "but nothing says that others see it"


@pytest.mark.parametrize("text", ["", "\n\n", "1 0 0:1 / /elsewhere rw - nfs a rw\n", "1 2 0:1 / / rw -\n"])
def test_without_a_mount_that_holds_it_a_path_is_local(tmp_path: Path, text: str) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(text)
    for where in (mountinfo, tmp_path / "missing"):
        assert file_system("/run", where) == ""
        assert has_reliable_flock("/run", where)
        assert not is_shared("/run", where)


def test_mounts_that_are_each_others_parents_end(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text("1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / / rw - xfs b rw\n1 2 0:1 / / rw - nfs a rw\n")
    assert file_system("/run", mountinfo) in ("ext4", "xfs", "nfs")


@pytest.mark.parametrize(
    ("path", "mount"),
    [
        ("/usr/share", Mount("/", "ext4")),
        ("/homes", Mount("/", "ext4")),
        ("/home/me/scratch/x", Mount("/home/me/scratch", "xfs")),
        ("/content/gdrive/My Drive/model", Mount("/content/gdrive", "fuse.drive")),
        ("/mnt/with a blank\\and\tmore/run", Mount("/mnt/with a blank\\and\tmore", "cifs")),
        ("/old/part/file", Mount("/old", "ext4")),
        ("/auto/me", Mount("/auto", "nfs")),
    ],
)
def test_where_the_mount_is_that_a_path_leads_to(mountinfo: Path, path: str, mount: Mount) -> None:
    assert mount_of(path, mountinfo) == mount


def test_without_a_list_the_mount_is_found_all_the_same(tmp_path: Path) -> None:
    expected = mount_of(tmp_path).point
    assert mount_of(tmp_path / "not made yet", tmp_path / "missing") == Mount(expected, "")


def test_links_are_followed_up_to_a_mount_that_may_not_answer(tmp_path: Path) -> None:
    tmp_path = tmp_path.resolve()
    for folder in ("real", "nas"):
        (tmp_path / folder).mkdir()
    links = {
        "link": "real",
        "far": "nas/x/../y",
        "up": str(tmp_path / "link" / ".."),
        "ring": "ring",
        "nas/in": "../real",
    }
    for link, target in links.items():
        (tmp_path / link).symlink_to(target)
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"1 0 8:1 / / rw - ext4 a rw\n2 1 0:9 / {tmp_path}/nas rw - nfs4 server:/ rw\n")
    for path, expected in {
        "real/not yet": "real/not yet",
        "link/a/../b": "real/b",
        "link/../link/a": "real/a",
        "far/z": "nas/y/z",
        "up/link": "real",
        "ring/x": "ring/x",
        "nas/in/x": "nas/in/x",
        "nas": "nas",
    }.items():
        assert resolved(tmp_path / path, mountinfo) == str(tmp_path / expected), path
    assert resolved("/", mountinfo) == "/"
    assert resolved(tmp_path / "nas/in/x", tmp_path / "missing") == str(tmp_path / "real/x"), "all is local"


@pytest.mark.skipif(not os.path.exists(MOUNTINFO), reason="only Linux lists its mounts so")
def test_this_machine_agrees_with_stat() -> None:
    """`stat -f` asks the file system itself; its names for the types differ, those of /proc do not."""
    assert file_system("/proc/self") == "proc"
    assert file_system(os.path.dirname(__file__)) != ""
    command = ["stat", "-f", "-c", "%T", os.path.dirname(__file__)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if told in ("tmpfs", "xfs", "btrfs", "overlayfs", "nfs"):
        assert file_system(os.path.dirname(__file__)).rstrip("4") == told.replace("overlayfs", "overlay")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts need root")
def test_a_bind_mount_and_a_tmpfs_in_a_namespace_of_their_own(tmp_path: Path) -> None:
    """Real mounts, with a blank in the name, seen by a process that lives among them."""
    for name in ("a b", "bound"):
        (tmp_path / name).mkdir()
    told = "from ksupervise.store.mounts import file_system as f; import sys; print(*map(f, sys.argv[1:]), sep='|')"
    script = (
        f'set -e; mount -t tmpfs none "{tmp_path}/a b"; mkdir "{tmp_path}/a b/in"; '
        f'mount --bind "{tmp_path}/a b/in" "{tmp_path}/bound"; '
        f'"{sys.executable}" -c "{told}" "{tmp_path}/a b/x" "{tmp_path}/bound/y" "{tmp_path}"'
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    try:
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if result.returncode:
        pytest.skip(f"no mounts here: {result.stderr.strip()}")
    assert result.stdout.strip() == f"tmpfs|tmpfs|{file_system(tmp_path)}"
