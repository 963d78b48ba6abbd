"""The demo on memcached and the Datastore emulator, as ``make demo STORE=gae`` runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

import pytest


def test_the_demo_on_real_servers(tmp_path: Path) -> None:
    """It starts its servers, counts through both tiers, and takes the servers along."""
    for program in ("memcached", "gcloud", "java"):
        if shutil.which(program) is None:
            if os.environ.get("CI") == "true":
                pytest.fail(f"{program} is not installed")
            pytest.skip(f"{program} is not installed")
    environment = {name: os.environ[name] for name in os.environ if "DATASTORE" not in name}
    demo = subprocess.Popen(
        [sys.executable, "-m", "tieredsession", "demo", "--store", "gae", "--port", "0"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert demo.stdout is not None
    with demo, demo.stdout:
        try:
            lines = iter(demo.stdout.readline, "")
            port = next(int(m[1]) for line in lines if (m := re.search(r":(\d+)/", line)))
            cookie = ""
            pages = []
            for _ in range(3):
                connection = HTTPConnection("127.0.0.1", port, timeout=30)
                connection.request("GET", "/", headers={"Cookie": cookie})
                response = connection.getresponse()
                pages.append(response.read().decode())
                cookie = (response.headers["Set-Cookie"] or cookie).partition(";")[0]
                connection.close()
        finally:
            demo.terminate()
        assert demo.wait(30) != -9
    assert "Datastore create" in pages[0]
    assert "cache get_or_add" in pages[2]
    assert "Datastore update" in pages[2]
    port_of_cache = re.search(r"memcached at 127\.0\.0\.1:(\d+)", pages[0])
    assert port_of_cache is not None
    gone = HTTPConnection("127.0.0.1", int(port_of_cache[1]), timeout=1)
    with pytest.raises(ConnectionRefusedError):
        gone.connect()
