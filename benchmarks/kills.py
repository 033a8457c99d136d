"""Kill small runs at random moments and at every write, run the same command again until it is done, and compare every
file with a run that was not killed.

    python benchmarks/kills.py --kills 200                      all of it
    python benchmarks/kills.py --kills 200 --slice 2/8          the second eighth, where a command may not take long
    python benchmarks/kills.py --kills 20 --verbs run --moments writes
    python benchmarks/kills.py --kills 20 --verbs train --finished runs/demo

Commands start as forks of this process, which has imported everything, so that a kill costs what the work costs. A run
is killed again and again until it gets to its end; then it must be equal, with nothing beside it. Needs a system that
can fork.
"""
import argparse
import asyncio
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from pathlib import Path

import psutil

os.environ |= {'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'}
QUICK = ('inputs.n_photos=8', 'inputs.n_dances=1', 'num_frames=5', 'training.steps_a=4', 'training.steps_b=2',
         'training.batch_size=4', 'training.checkpoint_every=2', 'sampling.steps=2')
VERBS, MOMENTS, SIGNALS = ('demo', 'train', 'run'), ('random', 'writes'), ('SIGKILL', 'SIGTERM', 'SIGINT', 'SIGHUP')
HEAVY = ('faceid_nb.app.runner', 'faceid_nb.app.runs', 'insightface.app', 'ipykernel.kernelapp', 'ipykernel.ipkernel',
         'ipykernel.zmqshell', 'faceid_nb.world.scenes', 'faceid_nb.world.tiny',
         'diffusers.pipelines.wan.pipeline_wan_vace', 'diffusers.models.autoencoders.autoencoder_kl_wan',
         'transformers.models.t5.modeling_t5', 'transformers.models.umt5.modeling_umt5', 'peft.tuners.lora',
         'imageio.plugins.ffmpeg', 'matplotlib.backends.backend_agg', 'matplotlib_inline.backend_inline')
STOPPED = 'faceid: stopped; the same command goes on from here'
LIMIT = 300.  # Seconds after which a command counts as stuck


# Forks

def fork(work, log):
    "Run `work` in a fork, what it says to stderr in `log`; return its process id"
    pid = os.fork()
    if pid: return pid
    code = 1
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 2)
        for handle in (0, 1):
            os.dup2(os.open(os.devnull, os.O_RDWR), handle)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = work()
        sys.stdout.flush()
    finally:  # the fork must not go on as this program
        if error := sys.exception():
            traceback.print_exception(error)
        os._exit(code or 0)


def same_process(pid, born):
    "Find the process of that id that began then; another may have got its id since"
    try:
        one = psutil.Process(pid)
    except psutil.NoSuchProcess: return None
    return one if one.create_time() == born and one.status() != psutil.STATUS_ZOMBIE else None


def fork_kernel(pids):
    "Make a `launch_kernel` that forks this process instead of starting Python anew"
    def launch(cmd, stdin=None, stdout=None, stderr=None, env=None, independent=False, cwd=None, **rest):
        parent = str(os.getpid())
        pid = os.fork()
        if pid:
            with open(pids, 'a') as file:
                file.write(f'{pid} {psutil.Process(pid).create_time()}\n')
            while os.getpgid(pid) != pid:
                time.sleep(.001)  # before that its group is ours
            process = subprocess.Popen.__new__(subprocess.Popen)
            process.__dict__ |= dict(pid=pid, args=cmd, returncode=None, stdin=None, stdout=None, stderr=None,
                                     _child_created=True, _sigint_wait_secs=0, _waitpid_lock=threading.Lock())
            return process
        try:
            os.setsid()
            asyncio.events._set_running_loop(None)
            asyncio.set_event_loop(asyncio.new_event_loop())
            for handle in (1, 2):
                os.dup2(stderr.fileno(), handle)
            for name in SIGNALS[1:]:
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, 0)
            for handle in os.listdir('/proc/self/fd'):  # a real kernel inherits no lock
                link = f'/proc/self/fd/{handle}'
                if os.path.exists(link) and os.readlink(link).endswith('.lock'):
                    os.close(int(handle))
            import_module('faceid_nb.app.store').HELD.clear()
            sys.argv = ['ipykernel_launcher', *cmd[3:], f'--IPKernelApp.parent_handle={parent}']
            from ipykernel.kernelapp import launch_new_instance
            launch_new_instance()
        finally:
            os._exit(0)
    return launch


# Where to kill

WRITES = {'open', 'os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.link', 'os.symlink', 'os.chmod'}


class Killer:
    "Send a signal before the first write below `folder` that was not killed yet"
    def __init__(self, folder, done, name, note, both):
        self.folder, self.done, self.name, self.note, self.both = str(folder), done, name, note, both
        self.command, self.seen, self.busy = os.getpid(), Counter(), False

    def hear(self, event, args):
        if event not in WRITES or self.busy: return
        if event == 'open' and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        self.write(event, args[1] if event == 'os.rename' else args[0])

    def write(self, event, path):
        if not isinstance(path, (str, os.PathLike)) or not os.path.abspath(path).startswith(self.folder): return
        place = re.sub(r'\.faceid_part\.\d+\.|\.\d+\.', '.', os.path.relpath(path, self.folder))
        self.seen[event, place] += 1
        key = f'{event} {place} {self.seen[event, place]}'
        if key in self.done or self.seen[event, place] > 2: return
        self.busy = True
        with open(self.note, 'a') as file:
            file.write(key + '\n')
        os.kill(self.command, getattr(signal, self.name))
        if self.name == 'SIGKILL' and self.both:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self):
        flush = os.fsync
        def fsync(handle):
            if not self.busy:
                self.write('os.fsync', os.readlink(f'/proc/self/fd/{handle}'))
            return flush(handle)
        os.fsync = fsync
        sys.addaudithook(self.hear)


# What a run promises

def without_times(value):
    if isinstance(value, dict):
        changing = ('seconds', 'files', 'resumed_at', 'created', 'time', 'scratch')
        return {k: without_times(v) for k, v in value.items() if k not in changing}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def promised(folder):
    "Give every file of a run by content, without times and checkpoints, and of notebooks only the names"
    content = {}
    for path in sorted(p for p in folder.rglob('*') if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if 'checkpoints' in path.parts: continue
        if path.suffix == '.ipynb' or path.suffix == '.lock':
            content[name] = 'there'
        elif path.suffix == '.json':
            content[name] = json.dumps(without_times(json.loads(path.read_text(encoding='utf-8'))), sort_keys=True)
        else:
            content[name] = sha256(path.read_bytes()).hexdigest()
    return content


def strays(folder, names):
    "List what lies in a finished run beside its files, also checkpoints that no list names"
    kept = set()
    for listed in folder.rglob('checkpoints.json'):
        kept |= {listed, *(listed.parent/one['file'] for one in json.loads(listed.read_text())['checkpoints'])}
    found = {p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file() and p not in kept}
    return sorted(found - set(names))


# Runs and kills

@dataclass
class Row:
    "Count what happened to one kind of kill"
    kills:int = 0
    runs:int = 0
    equal:int = 0
    stuck:int = 0
    strays:int = 0
    wrong:int = 0        # Ends of another code, of more than one line, or with a kernel left
    slowest:float = 0.   # Longest time from a stop to the end, s
    notes:list = field(default_factory=list)


class Bench:
    "Run commands in forks, killed or whole"
    def __init__(self, home, seed):
        self.home, self.chance = home, random.Random(seed)
        self.log, self.note, self.pids = home/'log', home/'note', home/'pids'

    def words(self, verb, folder):
        if verb == 'train': return ['train', str(folder)]
        if verb == 'embed': return ['embed', str(folder)]
        return [*(['run', 'tiny'] if verb == 'run' else [verb]), '--folder', str(folder), *QUICK]

    def start(self, verb, folder, killer=None):
        def work():
            from jupyter_client.provisioning import local_provisioner
            local_provisioner.launch_kernel = fork_kernel(self.pids)
            os.chdir(self.home)
            sys.argv = ['faceid', *self.words(verb, folder)]
            if killer:
                Killer(folder, *killer).install()
            return import_module('faceid_nb.app.cli').main()
        self.log.write_text('')
        return fork(work, self.log)

    def wait(self, pid, limit):
        "Wait for a command; its exit code, or None when it still runs"
        until = time.monotonic() + limit
        while time.monotonic() < until:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done: return os.waitstatus_to_exitcode(status)
            time.sleep(.01)
        return None

    def whole(self, verb, folder):
        "Run a command to its end"
        code = self.wait(self.start(verb, folder), LIMIT)
        if code: raise SystemExit(f'{verb} ended with {code}: {self.log.read_text()[-2000:]}')

    def kernels_left(self):
        "Wait for the kernels of a command that ended; say how many stay"
        lines = [line.split() for line in self.pids.read_text().splitlines()] if self.pids.exists() else []
        self.pids.unlink(missing_ok=True)
        left = [one for pid, born in lines if (one := same_process(int(pid), float(born)))]
        left = psutil.wait_procs(left, timeout=5)[1]
        for one in left:
            one.kill()
        return len(left)

    def kill(self, verb, folder, moment, name, seconds, done, row):
        "Start a command and kill it; say whether it came to its end before that"
        began = time.monotonic()
        self.note.unlink(missing_ok=True)
        pid = self.start(verb, folder, (done, name, self.note, len(done) % 2) if moment == 'writes' else None)
        code = self.wait(pid, self.chance.uniform(0, seconds) if moment == 'random' else LIMIT)
        asked = began
        if moment == 'random':
            asked = time.monotonic()
        elif self.note.exists():
            asked = self.note.stat().st_mtime - time.time() + time.monotonic()
        if moment == 'random' and code is None:
            os.kill(pid, getattr(signal, name))
            code = self.wait(pid, 60)
        if code is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            row.stuck += 1
            row.notes.append(f'{verb} {moment} {name}: did not end')
        if name != 'SIGKILL':
            left = self.kernels_left()
        else:
            # Two of three times the same command starts at once, beside the orphan
            left = 0 if len(done) % 3 else self.kernels_left()
        new = self.note.read_text().splitlines() if self.note.exists() else []
        done |= set(new)
        said = self.log.read_text(errors='replace').strip().splitlines()
        if code == 0 and not new: return True
        row.kills += 1
        if name == 'SIGKILL':
            fine = code in (-signal.SIGKILL, 0)
        else:
            fine = (code, said) in ((0, []), (130, [STOPPED]))
            row.slowest = max(row.slowest, time.monotonic() - asked)
        if not fine or left:
            row.wrong += 1
            row.notes.append(f'{verb} {moment} {name} at {new}: code {code}, {left} kernels left, said {said[-8:]}')
        return code == 0

    def chain(self, verb, moment, name, reference, start, seconds, row, budget):
        "Kill one run until it comes to its end, then compare it; spend at most `budget` kills"
        folder, done, first = self.home/'run', set(), row.kills
        shutil.rmtree(folder, ignore_errors=True)
        if start:
            shutil.copytree(start, folder)
        ended = False
        while not ended and row.kills - first < budget:
            ended = self.kill(verb, folder, moment, name, seconds, done, row)
        self.kernels_left()
        if not ended:
            code = self.wait(self.start(verb, folder), LIMIT)
            if code:
                row.stuck += 1
                said = self.log.read_text()[-500:]
                row.notes.append(f'{verb} {moment} {name}: the last command ended with {code}: {said}')
        self.kernels_left()
        row.runs += 1
        there, stray = promised(folder), strays(folder, reference)
        row.equal += there == reference
        row.strays += len(stray)
        if there != reference:
            names = there.keys() | reference.keys()
            wrong = sorted(k for k in names if there.get(k) != reference.get(k))
            row.notes.append(f'{verb} {moment} {name}: differ in {wrong[:5]}')
        if stray:
            row.notes.append(f'{verb} {moment} {name}: left over {stray[:5]}')


def print_table(rows):
    print(f'{"verb":6s}{"moment":9s}{"signal":9s}{"kills":>7s}{"runs":>6s}{"equal":>7s}{"stuck":>7s}{"strays":>8s}'
          f'{"wrong":>7s}{"slowest stop, s":>17s}')
    for (verb, moment, name), r in rows.items():
        if r.kills or r.runs:
            print(f'{verb:6s}{moment:9s}{name:9s}{r.kills:7d}{r.runs:6d}{r.equal:7d}{r.stuck:7d}{r.strays:8d}'
                  f'{r.wrong:7d}{r.slowest:17.1f}')
    keys = ('kills', 'runs', 'equal', 'stuck', 'strays', 'wrong')
    total = {key: sum(getattr(r, key) for r in rows.values()) for key in keys}
    slowest = max((r.slowest for r in rows.values()), default=0)
    print(f'{"all":24s}{total["kills"]:7d}{total["runs"]:6d}{total["equal"]:7d}{total["stuck"]:7d}{total["strays"]:8d}'
          f'{total["wrong"]:7d}{slowest:17.1f}')
    for row in rows.values():
        for note in row.notes:
            print('!', note)
    return total


def kill_runs(home, kills, verbs=VERBS, moments=MOMENTS, signals=SIGNALS, seed=0, seconds=1e9, chain=12, finished=None):
    "Spend `kills` kills in chains of at most `chain`, in turn over verbs, moments and signals; return the table's rows"
    began = time.monotonic()
    for name in HEAVY:
        import_module(name)
    if len(os.listdir('/proc/self/task')) > 1:
        print('This process has threads; its forks may hang.', file=sys.stderr)
    bench, references, starts, took = Bench(home, seed), {}, {}, {}
    for verb in verbs:
        whole, starts[verb] = home/f'whole_{verb}', None
        if verb == 'train':
            base, first = home/'base', finished or home/'first'
            if not finished:
                bench.whole('demo', first)
            def unneeded(place, names):
                kept = ('input', 'curate', 'embed', 'looks', 'run.json')
                return [n for n in names if Path(place) == first and n not in kept]
            starts[verb] = shutil.copytree(first, base, ignore=unneeded)
            shutil.copytree(base, whole)
        start = time.monotonic()
        bench.whole(verb, whole)
        took[verb], references[verb] = time.monotonic() - start, promised(whole)
        bench.kernels_left()
    print(f'{", ".join(f"{verb} {s:.0f} s" for verb, s in took.items())} without a kill', flush=True)
    rows = {(verb, moment, name): Row() for moment in moments for name in signals for verb in verbs}
    while sum(r.kills for r in rows.values()) < kills and time.monotonic() - began < seconds:
        key = min(rows, key=lambda key: rows[key].kills)
        budget = min(chain, kills - sum(r.kills for r in rows.values()))
        bench.chain(*key, references[key[0]], starts[key[0]], took[key[0]], rows[key], budget)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=200, help='kills in all (default 200)')
    parser.add_argument('--slice', default='1/1', help='which part of them, for example 2/8')
    parser.add_argument('--seed', type=int, default=0, help='of the random moments')
    parser.add_argument('--seconds', type=float, default=1e9, help='begin no further run after this time')
    parser.add_argument('--chain', type=int, default=12,
                        help='kills of one run before it may come to its end (default 12)')
    parser.add_argument('--finished', type=Path, help='a finished small run, whose training is killed')
    for name, known in (('verbs', VERBS), ('moments', MOMENTS), ('signals', SIGNALS)):
        parser.add_argument(f'--{name}', nargs='+', choices=known, default=known)
    asked = parser.parse_args()
    part, parts = (int(word) for word in asked.slice.split('/'))
    kills = asked.kills//parts + (part <= asked.kills % parts)
    home = Path(tempfile.mkdtemp()).resolve()  # not a TemporaryDirectory: each fork that ends would remove it
    try:
        seed = asked.seed*1000 + part
        finished = asked.finished.resolve() if asked.finished else None
        rows = kill_runs(home, kills, asked.verbs, asked.moments, asked.signals, seed, asked.seconds, asked.chain,
                         finished)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    total = print_table(rows)
    sys.exit(total['equal'] != total['runs'] or total['stuck'] or total['strays'] or total['wrong'])


if __name__ == '__main__':
    main()
