"""Disks of a test's own: ext4 in a file, mounted over a loop device. Needs root."""

import shutil
import subprocess
from pathlib import Path

import pytest


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


class Disk:
    """An image with a file system, mounted; `close` leaves nothing behind."""

    def __init__(self, directory, name, *, size_mb=None, image=None):
        self.image = Path(image) if image else Path(directory) / f"{name}.img"
        self.mount = Path(directory) / name
        self.mounted = False
        if image is None:
            with open(self.image, "wb") as file:
                file.truncate(size_mb << 20)
            run("mkfs.ext4", "-q", "-F", "-m", "0", self.image)
        self.mount.mkdir()
        done = subprocess.run(["mount", "-o", "loop", self.image, self.mount], capture_output=True, text=True)
        if done.returncode != 0:
            self.close()
            pytest.skip(f"loop devices cannot be mounted here ({done.stderr.strip()}), run as root on a real kernel")
        self.mounted = True

    @property
    def data(self):
        return self.mount / "data"

    def copy_as_after_a_power_cut(self, directory, name):
        """The image as the device has it now. What is only in caches of the file system is not in it."""
        image = Path(directory) / f"{name}.img"
        run("cp", "--sparse=always", self.image, image)
        return Disk(directory, name, image=image)

    def fill(self):
        """Takes all the room that is left; says where it lies, to be removed again."""
        filler = self.mount / "filler"
        with open(filler, "wb", buffering=0) as file:
            for piece_bytes in (1 << 20, 4096, 1):
                try:
                    while True:
                        file.write(b"x" * piece_bytes)
                except OSError:
                    pass
        return filler

    def close(self):
        if self.mounted:
            # The server may have ended a moment ago: lazily, so that nothing is left whatever happens.
            run("umount", "-l", self.mount)
            self.mounted = False
        shutil.rmtree(self.mount, ignore_errors=True)
        self.image.unlink(missing_ok=True)
