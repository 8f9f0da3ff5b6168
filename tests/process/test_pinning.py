"""What an unseeded script draws is the same at each attempt of its run, and only there."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from .helpers import KSUPERVISE, PYTHON, Place
from .test_injection import INTERPRETERS

# Draws from everything that is pinned, in every way; prints one JSON line for each attempt; fails in the first two.
DRAWS = """
import json, os, random
drawn = {
    "random": [random.random(), random.randrange(10**9)],
    "hashes": list({"a", "b", "c", "d", "e", "f", "g"}) + [hash("a")],
}
try:
    import numpy as np
except ImportError:
    pass
else:
    drawn["numpy"] = np.random.rand(2).tolist()
    drawn["default_rng"] = [np.random.default_rng().integers(10**9).item() for _ in range(2)]
    drawn["RandomState"] = np.random.RandomState().randint(10**9)
    drawn["SeedSequence"] = str(np.random.SeedSequence().entropy)
    drawn["Philox"] = str(np.random.Generator(np.random.Philox()).integers(10**9))
    drawn["permutation"] = np.random.permutation(20).tolist()
print(json.dumps(drawn), flush=True)
"""
TWICE = DRAWS + "raise SystemExit(os.environ.get('KSUPERVISE_ATTEMPT') in ('1', '2'))\n"


def _lines(out: bytes) -> list[Any]:
    return [json.loads(line) for line in out.splitlines()]


def _same(drawn: list[Any]) -> Any:
    """What all of them drew."""
    assert drawn
    assert all(each == drawn[0] for each in drawn[1:]), drawn
    return drawn[0]


def _differ(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Not one source of theirs gave both the same."""
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] == other[name]] == []


def _other_numpys() -> dict[str, str]:
    """Interpreters with a numpy, by its version: this one, and those that KSUPERVISE_NUMPYS names (a path's list)."""
    found: dict[str, str] = {}
    for path in [PYTHON, *filter(None, os.environ.get("KSUPERVISE_NUMPYS", "").split(os.pathsep))]:
        program = "import numpy; print(numpy.__version__)"
        version = subprocess.run([path, "-c", program], capture_output=True, text=True, timeout=60, check=True)
        found.setdefault(version.stdout.strip(), path)
    return found


# The same in one run, not in two


@pytest.mark.parametrize(("version", "python"), _other_numpys().items())
def test_all_attempts_of_a_run_draw_the_same(place: Place, version: str, python: str) -> None:
    script = [python, place.write("script.py", TWICE)]
    done = place.run(*script)
    drawn = _lines(done.out)
    assert (done.code, done.theirs, len(drawn)) == (0, b"", 3)
    first = _same(drawn)
    assert len(first) == 8, f"numpy {version} was there"
    assert first["default_rng"][0] != first["default_rng"][1]
    (alone,) = _lines(place.plain(script).out)
    _differ(first, alone)


def test_so_do_those_of_a_later_parent(place: Place) -> None:
    script = place.script(TWICE)
    drawn = [_lines(place.run("--max-failures", "1", "--retry", *script).out) for _ in range(3)]
    _same([line for lines in drawn for line in lines])
    assert [len(lines) for lines in drawn] == [1, 1, 1]


def test_two_runs_draw_differently(place: Place) -> None:
    script = place.script(DRAWS)
    one, other = (_lines(place.run("--name", name, *script).out)[0] for name in ("one", "other"))
    _differ(one, other)


def test_a_run_begun_anew_draws_anew(place: Place) -> None:
    script = place.script(DRAWS)
    (one,), (other,) = (_lines(place.run("--fresh", *script).out) for _ in range(2))
    _differ(one, other)


def test_sklearns_split_without_a_random_state(place: Place) -> None:
    pytest.importorskip("sklearn")
    source = """
import os
from sklearn.model_selection import ShuffleSplit, train_test_split
print(train_test_split(list(range(50)))[1], [list(test) for _, test in ShuffleSplit(2).split(range(9))], flush=True)
raise SystemExit(os.environ['KSUPERVISE_ATTEMPT'] == '1')
"""
    one, other = place.run(*place.script(source)).out.splitlines()
    assert one == other
    assert place.run("--name", "another", *place.script(source)).out.splitlines()[0] != one


# The seed


def test_the_recorded_seed_is_what_is_used(place: Place) -> None:
    source = (
        "import os; print(os.environ['KSUPERVISE_PIN'], os.environ['PYTHONHASHSEED'], 'KSUPERVISE_SEED' in os.environ)"
    )
    pin, hashes, keras = place.run(*place.script(source)).out.decode().split()
    assert int(pin) == place.record()["seed"]
    assert 0 < int(hashes) < 2**32
    assert keras == "False"


@pytest.mark.parametrize("seed", ["0", "7", str(2**32 - 1)])
def test_a_given_seed_makes_runs_alike(place: Place, seed: str) -> None:
    script = place.script(DRAWS)
    _same([_lines(place.run("--fresh", "--seed", seed, *script).out)[0] for _ in range(2)])
    assert place.record()["seed"] == int(seed)


def test_a_given_seed_is_kept_by_later_calls(place: Place) -> None:
    script = place.script("import os; print(os.environ['KSUPERVISE_SEED'], os.environ['KSUPERVISE_PIN']); exit(1)")
    assert place.run("--seed", "7", "--max-failures", "1", *script).out == b"7 7\n"
    again = place.run("--retry", "--max-failures", "1", *script)
    assert again.out == b"7 7\n"
    assert not again.said("--seed")


def test_another_seed_is_taken_and_said(place: Place) -> None:
    script = place.script("import os; print(os.environ['KSUPERVISE_SEED'], os.environ['KSUPERVISE_PIN']); exit(1)")
    place.run("--max-failures", "1", *script)
    again = place.run("--seed", "7", "--retry", "--max-failures", "1", *script)
    assert again.out == b"7 7\n"
    assert again.said("--seed 7 is not the seed that run")
    assert place.record()["seed"] == 7


# The script's own choice


SEEDED = "import random; random.seed(3)\nimport numpy as np; np.random.seed(3); r = np.random.default_rng(3)\n"
OWN = f"""
{SEEDED}
print(random.random(), np.random.rand(3), r.random(3), random.Random(4).random(), np.random.RandomState(4).rand(2))
print(np.random.SeedSequence(5).spawn(2)[1].generate_state(2), np.random.Philox(3).random_raw())
"""


def test_a_script_that_seeds_itself_gets_its_own_numbers(place: Place) -> None:
    script = place.script(OWN)
    assert place.run("--seed", "11", *script).out == place.plain(script).out


@pytest.mark.parametrize("value", ["0", "1", "4294967295", "random", ""])
def test_the_users_hash_seed_stands(place: Place, value: str) -> None:
    script = place.script("import os, sys; print(repr(os.environ['PYTHONHASHSEED']), sys.flags.hash_randomization)")
    env = {"PYTHONHASHSEED": value}
    assert place.run(*script, env=env).out == place.plain(script, env).out


@pytest.mark.parametrize("option", ["-R", "-E", "-I"])
def test_so_do_options_about_it(place: Place, option: str) -> None:
    script = place.write("script.py", "print(hash('a'))")
    first, other = (place.run("--fresh", "--seed", "1", PYTHON, option, script).out for _ in range(2))
    assert first != other


def test_a_run_inside_a_run_has_its_own(place: Place) -> None:
    inner = place.write("inner.py", "import os, random; print(os.environ['PYTHONHASHSEED'], random.random())")
    outer = f"""
import os, subprocess, sys
print(os.environ["PYTHONHASHSEED"], flush=True)
command = [*{KSUPERVISE!r}, "--store", {str(place.root / "inner")!r}, "--seed", "5", "--fresh", "--quiet"]
for _ in range(2):
    subprocess.run([*command, sys.executable, {inner!r}], check=True)
"""
    outside, one, other = place.run("--seed", "4", *place.script(outer)).out.splitlines()
    assert one == other
    assert one.split()[0] != outside
    (alone,) = place.run("--name", "alone", "--seed", "5", PYTHON, inner).out.splitlines()
    assert alone == one


# The script cannot tell


def test_nothing_is_imported_that_the_script_did_not(place: Place) -> None:
    source = (
        "import sys; print([n for n in ('random', 'numpy', 'hashlib', 'json', 'zlib', 'bisect') if n in sys.modules])"
    )
    script = place.script(source)
    assert place.run(*script).out == place.plain(script).out == b"[]\n"


def test_the_modules_are_as_they_were(place: Place) -> None:
    source = """
import importlib.util, sys
print(importlib.util.find_spec("random").origin, "random" in sys.modules)  # a look is not an import
import random, importlib
import numpy.random.mtrand as mtrand, numpy.random
for module in (random, mtrand):
    print(module.__name__, module.__file__, type(module.__loader__), module.__spec__.origin)
    print(module.__spec__.loader is module.__loader__, sorted(vars(module)))
importlib.reload(random)
print([type(finder).__name__ for finder in sys.meta_path if "ksupervise" in repr(finder)] and "waiting for Keras")
"""
    script = place.script(source)
    ours, plain = place.run(*script).out.splitlines(), place.plain(script).out.splitlines()
    assert ours[:-1] == plain[:-1]
    assert (ours[-1], plain[-1]) == (b"waiting for Keras", b"[]")


def test_a_look_at_a_module_does_not_use_up_the_hook(place: Place) -> None:
    source = "import importlib.util; importlib.util.find_spec('random')\n" + TWICE
    _same(_lines(place.run(*place.script(source)).out))


@pytest.mark.parametrize(
    "body", ["def seed(a): print('seeded')", "print('imported')", "1/0", "import nothing_of_that_name"]
)
@pytest.mark.parametrize("then", ["import random", "import numpy.random"])
def test_a_random_py_of_the_scripts(place: Place, body: str, then: str) -> None:
    place.write("random.py", body)
    script = place.script(then)
    plain = place.plain(script)
    done = place.run("--max-failures", "1", *script)
    assert (done.out, done.theirs) == (plain.out, plain.err)


@pytest.mark.parametrize("version", sorted(INTERPRETERS))
def test_every_python(place: Place, version: str) -> None:
    done = place.run(INTERPRETERS[version], place.write("script.py", TWICE))
    drawn = _lines(done.out)
    assert (done.code, done.theirs, len(drawn)) == (0, b"", 3)
    if version != "3.8":
        _same(drawn)


def test_what_must_not_be_foreseen_is_not(place: Place) -> None:
    source = """
import os, random, secrets, tempfile, uuid
import numpy
print(os.urandom(8), secrets.token_hex(), uuid.uuid4(), random.SystemRandom().random(), sep="\\n")
print(random.Random().random(), secrets.randbits(64), tempfile.mktemp(), sep="\\n", flush=True)
raise SystemExit(os.environ["KSUPERVISE_ATTEMPT"] == "1")
"""
    lines = place.run(*place.script(source)).out.splitlines()
    assert len(lines) == len(set(lines)) == 14


# Several interpreters


def test_other_programs_of_the_script_draw_something_else(place: Place) -> None:
    place.write("draws.py", DRAWS)
    source = """
import os, subprocess, sys
print(subprocess.check_output([sys.executable, "draws.py"], text=True), end="")
print(subprocess.check_output([sys.executable, "draws.py", "other"], text=True), end="")
for _ in range(2):
    print(subprocess.check_output([sys.executable, "draws.py"], text=True), end="", flush=True)
raise SystemExit(os.environ["KSUPERVISE_ATTEMPT"] == "1")
"""
    drawn = _lines(place.run(*place.script(source)).out)
    assert drawn[:4] == drawn[4:]
    for one in range(4):
        for other in range(one):
            assert drawn[one]["random"] != drawn[other]["random"]
            assert drawn[one]["numpy"] != drawn[other]["numpy"]
            assert drawn[one]["default_rng"] != drawn[other]["default_rng"]


def test_programs_of_the_same_words_at_once_draw_differently(place: Place) -> None:
    place.write("draws.py", DRAWS)
    source = """
import subprocess, sys
running = [subprocess.Popen([sys.executable, "draws.py"], stdout=subprocess.PIPE, text=True) for _ in range(6)]
for each in running:
    print(each.communicate()[0], end="")
"""
    drawn = _lines(place.run(*place.script(source)).out)
    assert len({str(each["numpy"]) for each in drawn}) == len({each["SeedSequence"] for each in drawn}) == 6


POOL = """
import json, multiprocessing, os, random, threading
{early}
def draw(barrier):
    import numpy as np
    barrier.wait(30)
    return [random.random(), int(np.random.default_rng().integers(10**12)), str(np.random.SeedSequence().entropy)]
def work(queue, barrier):
    queue.put(draw(barrier))
if __name__ == "__main__":
    context = multiprocessing.get_context("{method}")
    queue, barrier = context.Queue(), context.Barrier(3)
    workers = [context.Process(target=work, args=(queue, barrier)) for _ in range(3)]
    for worker in workers: worker.start()
    print(json.dumps([queue.get(timeout=30) for _ in workers]), flush=True)
    for worker in workers: worker.join()
    raise SystemExit(os.environ["KSUPERVISE_ATTEMPT"] == "1")
"""


@pytest.mark.parametrize(
    ("method", "early"),
    [
        ("fork", ""),
        ("fork", "import numpy"),  # later than 1.26 it imports its random part when that is first used
        ("fork", "import numpy.random; random.random()"),
        ("spawn", "import numpy.random"),
        ("forkserver", ""),
    ],
)
def test_workers_of_a_pool_draw_differently(place: Place, method: str, early: str) -> None:
    one, other = _lines(place.run(*place.script(POOL.format(method=method, early=early))).out)
    workers = [*one, *other]
    for source in range(3):
        assert len({worker[source] for worker in workers}) == 6


def test_joblibs_workers_do_too(place: Place) -> None:
    pytest.importorskip("joblib")
    source = """
import json, os, random
import joblib
def draw(number):
    import numpy as np
    return [os.getpid(), random.random(), int(np.random.default_rng().integers(10**12)), np.random.rand()]
if __name__ == "__main__":
    with joblib.parallel_config("loky", n_jobs=2):
        print(json.dumps(joblib.Parallel(batch_size=1)(joblib.delayed(draw)(n) for n in range(8))))
"""
    (drawn,) = _lines(place.run(*place.script(source)).out)
    assert len({each[0] for each in drawn} | {os.getpid()}) > 1
    for index in (1, 2, 3):
        assert len({each[index] for each in drawn}) == 8


def test_what_went_before_a_fork_does_not_disturb(place: Place) -> None:
    """The process that forks goes on with its own stream, whatever its children draw."""
    source = """
import os, random
import numpy as np
def child():
    if os.fork() == 0:
        np.random.default_rng(), random.random()
        os._exit(0)
    os.wait()
{0}
print(np.random.default_rng().integers(10**12), random.random())
"""
    name = ("--name", "run", "--fresh", "--seed", "1")
    assert (
        place.run(*name, *place.script(source.format("child()"))).out
        == place.run(*name, *place.script(source.format(""))).out
    )


# Trouble


def test_a_streams_file_that_cannot_be_written(place: Place) -> None:
    source = """
import os
os.mkdir(os.path.join(os.environ["KSUPERVISE_RUN_DIR"], "attempts", "00" + os.environ["KSUPERVISE_ATTEMPT"], "streams"))
"""
    _same(_lines(place.run(*place.script(source + TWICE)).out))


def test_a_script_that_clears_its_environment(place: Place) -> None:
    source = "import os; attempt = os.environ['KSUPERVISE_ATTEMPT']; os.environ.clear()\n" + DRAWS
    done = place.run(*place.script(source + "raise SystemExit(attempt == '1')"))
    assert (done.code, done.theirs) == (0, b"")
    drawn = _lines(done.out)
    assert len(drawn) == 2
    _same(drawn)


def test_words_that_are_no_text(place: Place) -> None:
    script = place.script(TWICE)
    raw = [os.fsencode(word) for word in [*script, "x"]]
    raw[-1] = b"\xff\xfe"
    done = place.run(*[os.fsdecode(word) for word in raw])
    assert (done.code, done.theirs) == (0, b"")
    _same(_lines(done.out))


def test_a_long_program_text(place: Place) -> None:
    done = place.run(PYTHON, "-c", "#" * 50_000 + "\n" + TWICE)
    assert done.code == 0, done.err
    _same(_lines(done.out))


def test_it_needs_no_more_than_the_module(place: Place) -> None:
    """A numpy of some other time, without what we replace."""
    package = place.root / "numpy" / "random"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("from . import bit_generator, mtrand")
    (package / "bit_generator.py").write_text("")
    (package / "mtrand.py").write_text("def seed(n): print('seeded')")
    assert place.run(*place.script("import numpy.random")).out == b"seeded\n"
    (package / "mtrand.py").write_text("")
    done = place.run("--fresh", *place.script("import numpy.random; print('hi')"))
    assert (done.code, done.out, done.theirs) == (0, b"hi\n", b"")
    assert done.said("could not be pinned")
