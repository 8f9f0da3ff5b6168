"""Law 1 in a warm interpreter: what a script finds out before it imports Keras is what it would in a cold one."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest
from tests.process.helpers import Place, until
from tests.process.test_standby import Rig

from .compare import PROBE, Needed, assert_only, module_of_ours, only_more

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the probe reads /proc")

_EARLY = "modules of the standard library that Keras brings are there early"
NEEDED = {
    "modules": Needed(_EARLY, only_more(module_of_ours)),
    "meta path": Needed(
        "what was imported ahead, in the place of what notes imports",
        lambda cold, warm: [name for name in cold if name != "Recorder"] == [name for name in warm if name != "Stash"],
    ),
    "path cache": Needed("the import system's own note of where it has looked", lambda cold, warm: cold != warm),
    "mapped files": Needed("native parts of those modules", lambda cold, warm: set(cold) <= set(warm), always=False),
    "threading imported early": Needed(_EARLY, lambda cold, warm: warm and not cold, always=False),
    "atexit callbacks": Needed("the standard library's own, of those modules", lambda cold, warm: cold < warm),
    "environ.KSUPERVISE_ATTEMPT": Needed("it is the next one", lambda cold, warm: (cold, warm) == ("1", "2")),
    "environ.KSUPERVISE_STACKS": Needed("the same", lambda cold, warm: cold.replace("001", "002") == warm),
    "fd.201 target": Needed("the same", lambda cold, warm: cold.replace("001", "002") == warm),
}


def test_before_the_first_import(place: Place) -> None:
    rig = Rig(place)
    source = PROBE.read_text().partition('\nif __name__ == "__main__":')[0]
    source += """
Path(f"facts-{os.environ['KSUPERVISE_ATTEMPT']}.json").write_text(json.dumps(look_around()))
import keras
import time
print("ready", flush=True)
while not os.path.exists("done-" + os.environ["KSUPERVISE_ATTEMPT"]):
    time.sleep(0.005)
"""
    parent = rig.start(*place.script(source))
    parent.line("ready")
    rig.told("warm")
    os.kill(rig.child(1), signal.SIGKILL)
    parent.line("ready", times=2)
    rig.end(parent, 2)
    assert until(lambda: place.events("launched")[-1].get("warm"), "warm launch")
    cold, warm = (json.loads((place.root / f"facts-{attempt}.json").read_bytes()) for attempt in (1, 2))
    assert_only(NEEDED, cold, warm, by_chance=frozenset())
