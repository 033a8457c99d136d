"""Plant realistic bugs one at a time in a copy of this checkout, and print which of them the tests notice.

    python benchmarks/mutations.py --list
    python benchmarks/mutations.py --only velocity_reversed
    python benchmarks/mutations.py --jobs 2 --slice 1/4

The checkout itself is never changed. A bug whose text is not found exactly once is an error: the code has changed, so
its entry in `bugs.py` must change too. Exit code 0: at most 5 % survive and none of those that once did. 1: more do.
2: a bug does not fit the code, or a test fails without any bug."""
import argparse
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

from bugs import BUGS, KNOWN, Bug

ROOT = Path(__file__).resolve().parent.parent
COPIED = ('faceid_nb', 'tests', 'data', 'nbs/runs', 'pyproject.toml', 'settings.ini', 'setup.py', 'README.md',
    'LICENSE', 'NOTICE')
MOST = .05       # Share of bugs that may survive
RUNNING = set()  # Test runs in progress
HEAVY = (
    'pytest', 'hypothesis', 'torch', 'diffusers.pipelines.wan.pipeline_wan_vace', 'diffusers.loaders.lora_pipeline',
    'peft', 'accelerate', 'insightface.app', 'scipy.stats', 'scipy.cluster.hierarchy', 'scipy.ndimage', 'imageio.v3',
    'matplotlib.pyplot', 'papermill', 'pydantic', 'pillow_heif', 'tqdm.auto')
SERVER = multiprocessing.get_context('forkserver')  # Loads what is heavy once; every test run is a fork of it


def stop(
    number:int, # The signal
    frame:object,
):
    "End the test runs that this command started, then the command"
    for work in list(RUNNING):
        os.killpg(work.pid, signal.SIGKILL)
    sys.exit(128 + number)


@dataclass(frozen=True)
class Outcome:
    "What the tests said about one bug"
    name:str        # Name of the bug
    verdict:str     # killed, SURVIVED, or BROKEN when pytest itself did not get through
    by:str          # The first test that failed, or why there is none
    seconds:float   # Of the tests, wall clock


def misfits(
    bugs:Iterable[Bug],
)->list[str]:           # A line for each bug that cannot be planted
    "Check that every bug fits the code of this checkout"
    lines = []
    for bug in bugs:
        text = (ROOT/'faceid_nb'/bug.file).read_text(encoding='utf-8')
        found = text.count(bug.old)
        if found != 1:
            lines.append(f'{bug.name}: {bug.old!r} is found {found} times in {bug.file}, wanted once')
            continue
        try:
            compile(text.replace(bug.old, bug.new), bug.file, 'exec')
        except SyntaxError as error:
            lines.append(f'{bug.name}: {bug.file} does not compile with it: {error}')
    missing = {test for bug in bugs for test in bug.tests if not (ROOT/'tests'/f'{test}.py').is_file()}
    return lines + [f'tests/{test}.py is named and is not there' for test in sorted(missing)]


def copy_checkout(
    place:Path,     # Where; must not exist
)->Path:            # `place`
    "Copy what the tests need"
    ignored = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for name in COPIED:
        (place/name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT/name).is_dir():
            shutil.copytree(ROOT/name, place/name, ignore=ignored)
        else:
            shutil.copy(ROOT/name, place/name)
    return place


def pytest_in(
    copy:Path,              # A copied checkout
    tests:tuple[str, ...],  # Names of test files without suffix
    log:Path,               # Gets what pytest says
):
    "Run pytest in a copy, in this process, which was made for it, and end it"
    os.setsid()
    os.chdir(copy)
    os.environ |= {'PYTHONPATH': str(copy), 'PYTHONDONTWRITEBYTECODE': '1', 'OMP_NUM_THREADS': '1',
        'HF_HUB_OFFLINE': '1'}
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(copy))
    with log.open('w') as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    import faceid_nb
    import pytest
    assert Path(faceid_nb.__file__).is_relative_to(copy), f'{faceid_nb.__file__} is not the copy'
    code = pytest.main(['-x', '-q', '-W', 'ignore', '-p', 'no:cacheprovider', *(f'tests/{test}.py' for test in tests)])
    sys.stdout.flush()
    os._exit(code)


def run_tests(
    copy:Path,              # A copied checkout
    tests:tuple[str, ...],  # Names of test files without suffix
    name:str,               # How to call the outcome
    limit:int,              # Longest time, s; a bug that hangs is noticed
)->Outcome:
    "Run some tests in a copy until the first one fails"
    log, start = copy.parent/'pytest.txt', time.perf_counter()
    work = SERVER.Process(target=pytest_in, args=(copy, tests, log))
    work.start()
    RUNNING.add(work)
    work.join(limit)
    if work.exitcode is None:
        os.killpg(work.pid, signal.SIGKILL)
        work.join()
    RUNNING.discard(work)
    seconds, said = time.perf_counter() - start, log.read_text(encoding='utf-8', errors='replace')
    failed = re.search(r'^(?:FAILED|ERROR) tests/(\S+)', said, re.MULTILINE)
    if seconds >= limit: return Outcome(name, 'killed', f'not done in {limit} s', seconds)
    if work.exitcode == 0: return Outcome(name, 'SURVIVED', '', seconds)
    if work.exitcode == 1 and failed: return Outcome(name, 'killed', failed[1], seconds)
    return Outcome(name, 'BROKEN', f'pytest ended with {work.exitcode}: {said.strip()[-300:]}', seconds)


def plant(
    bug:Bug,
    copies:SimpleQueue,     # Copies of the checkout that nobody works in
    limit:int,              # Longest time, s
)->Outcome:
    "Plant a bug in a copy, run its tests and take the bug out again"
    copy = copies.get()
    path = copy/'faceid_nb'/bug.file
    right = path.read_text(encoding='utf-8')
    try:
        path.write_text(right.replace(bug.old, bug.new), encoding='utf-8')
        outcome = run_tests(copy, bug.tests, bug.name, limit)
    finally:
        path.write_text(right, encoding='utf-8')
        copies.put(copy)
    print(f'{outcome.verdict:8} {outcome.name:34} {outcome.seconds:4.0f} s  {outcome.by}', flush=True)
    return outcome


def part_of(
    bugs:list[Bug],
    words:str,      # i/n, from 1; empty takes all
)->list[Bug]:
    "Take the i-th of n parts"
    if not words: return bugs
    i, n = (int(word) for word in words.split('/'))
    return bugs[len(bugs)*(i - 1)//n:len(bugs)*i//n]


def try_all(
    bugs:list[Bug],
    jobs:int,           # Copies to work in side by side
    limit:int,          # Longest time for one bug, s
    plain:bool,         # Run the tests once without a bug first
)->list[Outcome]:
    "Plant all bugs, each alone"
    with TemporaryDirectory(prefix='mutations_') as scratch, ThreadPoolExecutor(jobs) as pool:
        copies = SimpleQueue()
        for k in range(jobs):
            copies.put(copy_checkout(Path(scratch)/f'{k}'/'checkout'))
        if plain:
            tests = tuple(sorted({test for bug in bugs for test in bug.tests}))
            healthy = run_tests(Path(scratch)/'0'/'checkout', tests, 'no bug', 10*limit)
            if healthy.verdict != 'SURVIVED': return [replace(healthy, verdict='BROKEN')]
            print(f'healthy  {"without a bug":34} {healthy.seconds:4.0f} s', flush=True)
        tasks = [pool.submit(plant, bug, copies, limit) for bug in bugs]
        try: return [task.result() for task in tasks]
        finally:
            pool.shutdown(cancel_futures=True)


def main()->int:    # Exit code
    parser = argparse.ArgumentParser(description='Plant bugs in a copy and see which the tests notice.')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='names of bugs')
    parser.add_argument('--slice', default='', metavar='I/N', help='the I-th of N parts')
    parser.add_argument('--jobs', type=int, default=1, help='bugs tried side by side (default 1)')
    parser.add_argument('--limit', type=int, default=300, metavar='SECONDS',
        help='longest time for one bug (default 300)')
    parser.add_argument('--no-plain', action='store_true', help='do not run the tests without a bug first')
    parser.add_argument('--list', action='store_true', help='only list the bugs and check that they fit the code')
    asked = parser.parse_args()
    bugs = [bug for bug in part_of(list(BUGS), asked.slice) if not asked.only or bug.name in asked.only]
    unknown = set(asked.only or ()) - {bug.name for bug in bugs}
    wrong = [f'no bug is called {name}' for name in sorted(unknown)] + misfits(bugs)
    if asked.list:
        for bug in bugs:
            print(f'{bug.name:34} {bug.file:28} {" ".join(bug.tests)}')
    if wrong or asked.list:
        print('\n'.join([*wrong, f'{len(bugs)} bugs, {len(wrong)} do not fit']))
        return 2 if wrong else 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    os.environ |= {'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'PYTHONWARNINGS': 'ignore'}
    SERVER.set_forkserver_preload(list(HEAVY))
    outcomes = try_all(bugs, asked.jobs, asked.limit, not asked.no_plain)
    alive = [one.name for one in outcomes if one.verdict == 'SURVIVED']
    broken = [one for one in outcomes if one.verdict == 'BROKEN']
    print(f'{len(outcomes)} bugs, {len(alive)} survived ({len(alive)/len(outcomes):.1%}): {", ".join(alive) or "none"}')
    if broken:
        print('\n'.join(f'{one.name}: {one.by}' for one in broken))
        return 2
    return int(len(alive) > MOST*len(outcomes) or any(name in KNOWN for name in alive))


if __name__ == '__main__':
    sys.exit(main())
