"""`forget` in random layouts of run folders, with links, lies and damage: 300, or as many as FACEID_LAYOUTS says.
Nothing of the person is left, and nothing of anybody else is touched."""
import json
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from faceid_nb.app.erasure import find_person_data, forget, person_data_text, residual_scan, unseen_text
from faceid_nb.app.store import MARKS
from faceid_nb.app import survey
from faceid_nb.core.errors import UserError
from faceid_nb.core.files import ASIDE
from faceid_nb.core.lock import lock_file

pytestmark = pytest.mark.skipif(os.name != 'posix', reason='links, pipes and hard links')
LOCKS = lock_file('/').parent
MEMORY = '/dev/shm'  # 20,000 small files are made here where there is such a place
LAYOUTS = int(os.environ.get('FACEID_LAYOUTS', 300))
PEOPLE = ('ann', 'bob', 'Zoë', "o'neil; $(x)")
OPTIONAL = ('embed', 'train', 'generate', 'evaluate', 'looks', 'notebooks', 'clips', 'drawn', 'whom', 'leftover',
            'partial', 'draft')
PATHS = {
    'recipe': {'inputs.photos': '\0', 'inputs.dances': '~nobody/x', 'inputs.reference': '/'},
    'photos': [{'sha256': [], 'reason': {}, 'crops': [{'file': ['x']}, {'file': '\ud800'}, {}]}]}
NULLS = {
    'subject': None, 'recipe': {'subject': None}, 'photos': [None, 3, {'crops': 4}], 'files': {'a': 3}}
TYPES = {'subject': 7, 'recipe': [], 'photos': {'a': 1}, 'files': 'x', 'clips': 3}
JUNK = {  # What a neighbour may hold where a JSON file should be
    'text': b'no json', 'list': b'[1, 2]', 'binary': bytes(range(256)), 'empty': b'', 'deep': b'['*20_000,
    'nan': b'{"subject": NaN}', 'utf16': '{"subject": "ann"}'.encode('utf-16'),
    'types': json.dumps(TYPES).encode(), 'nulls': json.dumps(NULLS).encode(), 'paths': json.dumps(PATHS).encode()}
LIES = ('../../{other}/curate/crops/{crop}', '../../../photos/{other}/0.jpg', '{home}/photos/{other}/0.jpg',
        'way/{crop}', 'x/../../{other}', '', '.', '..', 'a'*5000, 'no\0', 'C:\\x')
FEATURES = (
    *(f'lie {place} {who}' for place in ('manifest', 'phase', 'clips') for who in ('ann', 'other')),
    *(f'{how} {name}' for how in ('lost', 'junk') for name in ('run', 'manifest', 'phase')),
    'link file', 'link folder', 'link outside', 'link loop', 'link dangling', 'link own', 'link step', 'link run',
    'link inwards', 'link mark', 'hard outside', 'hard below', 'hard foreign', 'copy', 'copy in other', 'copy odd name',
    'shared crop', 'stolen crops', 'inner list', 'alias', 'second run', 'nested run', 'changed', 'letter', 'notes',
    'photo in crops', 'backup folder', 'own photos', 'empty folder', 'odd name', 'same text', 'neighbour', 'pipe',
    'socket', 'folder named', 'index', 'torn index', 'no index', 'archive')
CROWDED = {'shared crop', 'stolen crops'}  # With these, a run of the same crops is only named
LAYOUT = st.fixed_dictionaries({
    'people': st.integers(2, 4), 'steps': st.sets(st.sampled_from(OPTIONAL), max_size=6),
    'features': st.sets(st.sampled_from(FEATURES), max_size=12), 'junk': st.sampled_from(sorted(JUNK)),
    'lie': st.sampled_from(LIES), 'stop': st.one_of(st.none(), st.integers(0, 40))})


def digest(data):
    return sha256(data).hexdigest()


@dataclass
class World:
    "A home with photos and runs; `hers` is what `forget` must remove"
    home:Path
    hers:set = field(default_factory=set)
    known:bool = False   # Does any file say her name?

    def put(self, path, data, hers=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        if hers:
            self.hers.add(path)
        return path


def step(world, run, name, files, hers, extra=()):
    "A step as the store leaves it: its files, and a list of them"
    for file, data in files.items():
        world.put(run/name/file, data, hers)
    listed = {file: digest(data) for file, data in files.items()}
    world.put(run/name/'phase.json', {'name': name, 'key': 'k', 'seconds': 1, 'result': {}, 'files': listed}, hers)
    for file in extra:
        world.put(run/name/file, f'{run} {name} {file}'.encode(), hers)


def build_run(world, run, person, steps, hers, face=''):
    "A run folder with photos, crops and some of the steps; returns its manifest and its list of crops"
    own = world.home/'photos'/(face or person)
    photos, crops = [], {}
    for k in range(2):
        photo = world.put(own/f'{k}.jpg', f'photo {k} of {face or person}'.encode())
        sha = digest(photo.read_bytes())
        name = f'crops/{sha[:12]}_close.png'
        crops[name] = f'face {k} of {face or person}'.encode()
        photos.append({'file': photo.name, 'sha256': sha, 'reason': None, 'crops': [{'file': name}]})
    photos.append({'file': 'group.jpg', 'sha256': digest(b'group'), 'reason': 'not_subject', 'crops': []})
    manifest = {'version': 1, 'subject': person, 'photos': photos, 'large': []}
    files = {**crops, 'manifest.json': json.dumps(manifest).encode(), 'contact_sheet.png': f'sheet of {run}'.encode()}
    step(world, run, 'curate', files, hers)
    world.put(run/'run.json', {'recipe': {'name': 'tiny', 'subject': person, 'inputs.photos': str(own)}}, hers)
    for name in sorted(steps):
        more_of(world, run, person, name, hers)
    return manifest, crops


def more_of(world, run, person, name, hers):
    "One of the optional parts of a run folder"
    text = f' {person} in {run}'.encode()
    if name == 'embed':
        files = {'identity.json': json.dumps({'subject': person}).encode(), 'identity.safetensors': b'identity' + text}
        step(world, run, name, {**files, 'gallery.safetensors': b'gallery' + text}, hers)
    if name == 'train':
        files = {'branch.safetensors': b'branch' + text, 'lora/pytorch_lora_weights.safetensors': b'lora' + text}
        scratch = ['checkpoints/step_000001.safetensors', 'checkpoints/checkpoints.json', 'previews/step_000001.png']
        step(world, run, name, files, hers, scratch)
    if name == 'generate':
        step(world, run, name, {'base/waltz.mp4': b'the base model dances', 'full/waltz.mp4': b'full' + text}, hers)
    if name == 'evaluate':
        shown = {'report.html': b'report' + text, 'waltz.mp4': b'grid' + text}
        step(world, run, name, {**shown, 'scores.json': b'{}'}, hers)
        for file, data in shown.items():
            world.put(run/file, data, hers)
    if name == 'looks':
        world.put(run/'looks'/digest(b'key')[:16]/f'{digest(text)}_jpg.safetensors', b'look' + text, hers)
    if name == 'notebooks': world.put(run/'notebooks'/'10_curate.ipynb', b'book' + text, hers)
    if name == 'clips':
        clips = {'tango.mp4': {'sha256': digest(b'clip' + text), 'settings': {}}}
        page = {'clips': clips, 'elsewhere': {'/x/y.mp4': {'sha256': 'f'*64}}, 'version': 1}
        world.put(run/'clips'/'tango.mp4', b'clip' + text, hers)
        world.put(run/'clips'/'clips.json', page, hers)
        world.put(run/'clips'/'mine.mp4', b'my own clip')
    if name == 'drawn':
        files = {'photos/photo_01.jpg': b'drawn' + text, 'photos/photo_01.txt': b'a red shirt'}
        step(world, run, 'input/subject', {**files, 'photos_truth.json': b'{}'}, hers)
    if name == 'whom': world.put(run/'whom.png', b'whom' + text, hers)
    if name == 'leftover': world.put(run/'curate'/'.faceid_part.999999.x.png', b'half' + text, hers)
    if name == 'partial':
        world.put(run/'train.partial'/'started.json', {'key': 'k', 'makes': ['*'], 'others': []}, hers)
        world.put(run/'train.partial'/'checkpoints'/'step_000002.safetensors', b'more' + text, hers)
        world.put(run/'train.partial'/'diary.txt', b'dear diary')
    if name == 'draft': world.put(run/'.curate.draft'/'crops'/'abcdef012345_wide.png', b'draft' + text, hers)


def build(home, layout):
    "A home folder as the layout says, and what must be left of each index"
    world, has, people, runs = World(home), layout['features'], PEOPLE[:layout['people']], home/'runs'
    for person in people[1:]:
        build_run(world, runs/person, person, layout['steps'], False)
    ann, bob = runs/'ann', runs/people[1]
    manifest, crops = build_run(world, ann, 'ann', layout['steps'], True)
    crop = ann/'curate'/sorted(crops)[0]
    theirs = sorted((bob/'curate'/'crops').iterdir())[0]
    outside = world.put(home/'outside'/'treasure'/'gold.png', b'gold').parent
    more_runs(world, layout, ann, bob, crop)
    copies(world, has, bob, crop)
    links(world, layout, ann, bob, crop, theirs, outside)
    users_files(world, has, ann)
    neighbours(world, layout)
    lies(world, layout, ann, bob, crop, theirs)
    whole = damage(world, layout, ann)
    if not {'run', 'manifest'} & whole and 'embed' not in layout['steps']:  # nothing says whose run it is
        world.hers = {path for path in world.hers if path.is_relative_to(runs/'deep')}
    world.known = bool(world.hers) or 'index' in has
    read = crop in world.hers and ('manifest' in whole or 'alias' in has and not CROWDED & has)
    return world, build_indexes(world, runs, people, has, manifest if read else None)


def copies(world, has, bob, crop):
    "Copies of a crop of hers"
    runs = world.home/'runs'
    odd = Path(os.fsdecode(os.fsencode(runs/'odd') + b'/caf\xe9\n\x1b[31m.png'))
    places = {'copy': runs/'backup'/'old.png', 'copy in other': bob/'curate'/'from_ann.png', 'copy odd name': odd}
    for name in places.keys() & has:
        world.put(places[name], crop.read_bytes(), 'shared crop' not in has)


def more_runs(world, layout, ann, bob, crop):
    "Other runs of hers, runs in her run, and crops in two runs"
    has, runs, other = layout['features'], world.home/'runs', bob.name
    if 'shared crop' in has:
        added = {'file': 'x.jpg', 'sha256': digest(b'x'), 'reason': None, 'crops': [{'file': 'crops/abc_close.png'}]}
        page = json.loads((bob/'curate'/'manifest.json').read_bytes())
        world.put(bob/'curate'/'crops'/'abc_close.png', crop.read_bytes())
        world.put(bob/'curate'/'manifest.json', {**page, 'photos': page['photos'] + [added]})
    if 'stolen crops' in has and 'shared crop' not in has:  # all crops of another person, copied among hers, and listed
        page = json.loads((ann/'curate'/'manifest.json').read_bytes())
        for k, stolen in enumerate(sorted((bob/'curate'/'crops').glob('*_close.png'))):
            world.put(ann/'curate'/'crops'/f'5{k}_wide.png', stolen.read_bytes(), True)
            cut = [{'file': f'crops/5{k}_wide.png'}]
            page['photos'].append({'file': f'{k}', 'sha256': 'e'*64, 'reason': None, 'crops': cut})
        world.put(ann/'curate'/'manifest.json', page)
    if 'alias' in has and not CROWDED & has: build_run(world, runs/'alias', 'miss x', layout['steps'], True, face='ann')
    if 'second run' in has: build_run(world, runs/'deep'/'er'/'ann2', 'ann', {'embed'}, True, face='ann2')
    if 'nested run' in has: build_run(world, ann/'curate'/'inner', other, {'train'}, False)
    if 'nested run' in has and 'inner list' in has:  # her list names the files of the run inside
        page = json.loads((ann/'curate'/'phase.json').read_bytes())
        inner = [path for path in (ann/'curate'/'inner').rglob('*') if path.is_file()]
        more = {path.relative_to(ann/'curate').as_posix(): digest(path.read_bytes()) for path in inner}
        world.put(ann/'curate'/'phase.json', {**page, 'files': {**page['files'], **more}})
    if 'changed' in has: world.put(ann/'curate'/'contact_sheet.png', b'painted over', True)


def links(world, layout, ann, bob, crop, theirs, outside):
    "Links and hard links, into her run, out of it and round in it"
    has, home = layout['features'], world.home
    runs = home/'runs'
    far = home/'disk'/'far'
    if 'link run' in has: build_run(world, far, 'far', {'embed'}, False)
    step_link = ann/('evaluate.partial' if 'drawn' in layout['steps'] else 'input')
    wanted = {
        'link file': (ann/'curate'/'crops'/'a_close.png', theirs), 'link folder': (ann/'curate'/'way', theirs.parent),
        'link outside': (ann/'more', outside), 'link loop': (ann/'curate'/'loop', ann),
        'link dangling': (ann/'gone', home/'nowhere'), 'link own': (bob/'curate'/'look at her', crop),
        'link step': (step_link, outside), 'link run': (runs/'elsewhere', far), 'link inwards': (runs/'latest', ann),
        'link mark': (ann/'embed.partial'/'phase.json', bob/'curate'/'phase.json')}
    for path, target in (wanted[name] for name in sorted(wanted.keys() & has)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
        if path.is_relative_to(ann):
            world.hers.add(path)
    if 'hard outside' in has: os.link(crop, outside/'hard.png')
    if 'hard foreign' in has: os.link(theirs, ann/'curate'/'hers.png')
    if 'hard below' in has and 'shared crop' not in has:
        (runs/'hard').mkdir()
        os.link(crop, runs/'hard'/'again.png')
        world.hers.add(runs/'hard'/'again.png')


def users_files(world, has, ann):
    "What the user put there"
    runs = world.home/'runs'
    odd = Path(os.fsdecode(os.fsencode(ann/'curate') + b'/\xff\xfe'))
    wanted = {
        'letter': ann/'letter.txt', 'notes': ann/'curate'/'notes.txt', 'own photos': ann/'photos'/'0.jpg',
        'odd name': odd, 'photo in crops': ann/'curate'/'crops'/'me at the sea.png', 'archive': runs/'all.zip',
        'backup folder': ann/'.train.backup'/'branch.safetensors'}
    for name in wanted.keys() & has:
        world.put(wanted[name], f'mine: {name}'.encode())
    if 'same text' in has: world.put(runs/'settings.json', b'{}')
    if 'empty folder' in has: (ann/'mine').mkdir()


def neighbours(world, layout):
    "Run folders in which nothing is as it should be"
    has, runs = layout['features'], world.home/'runs'
    if 'neighbour' in has:
        for name in ('run.json', 'curate/manifest.json', 'train/phase.json', 'embed/identity.json', 'photos.jsonl'):
            world.put(runs/'odd one'/name, JUNK[layout['junk']])
    if 'pipe' in has:
        (runs/'pipes'/'curate').mkdir(parents=True)
        for name in ('run.json', 'curate/manifest.json', 'curate/phase.json', 'x.jsonl'):
            os.mkfifo(runs/'pipes'/name)
    if 'socket' in has:
        (runs/'s').mkdir()
        here = os.getcwd()
        os.chdir(runs/'s')  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as one:
            one.bind('run.json')
        os.chdir(here)
    if 'folder named' in has: (runs/'f'/'run.json'/'manifest.json').mkdir(parents=True)


def lies(world, layout, ann, bob, crop, theirs):
    "Names that lead out of the folder of the list that says them"
    has = layout['features']
    lie = layout['lie'].format(other=bob.name, crop=theirs.name, home=world.home)
    for who, run in (('ann', ann), ('other', bob)):
        said = lie if who == 'ann' else lie.replace(f'{bob.name}/', 'ann/').replace(theirs.name, crop.name)
        if f'lie manifest {who}' in has:
            page = json.loads((run/'curate'/'manifest.json').read_bytes())
            page['photos'][0]['crops'].append({'file': said})
            world.put(run/'curate'/'manifest.json', {**page, 'large': [{'file': said}]})
        if f'lie phase {who}' in has:
            page = json.loads((run/'curate'/'phase.json').read_bytes())
            world.put(run/'curate'/'phase.json', {**page, 'files': {**page['files'], said: digest(b'gold')}})
        if f'lie clips {who}' in has and 'clips' in layout['steps']:
            page = json.loads((run/'clips'/'clips.json').read_bytes())
            clips = {**page['clips'], said: {'sha256': digest(b'gold')}}
            world.put(run/'clips'/'clips.json', {**page, 'clips': clips})


def damage(world, layout, ann):
    "Lose or spoil the files that say whose run it is; returns those that are whole"
    files = {'run': ann/'run.json', 'manifest': ann/'curate'/'manifest.json', 'phase': ann/'curate'/'phase.json'}
    whole = set(files)
    for name, path in files.items():
        if f'lost {name}' in layout['features']:
            path.unlink()
            world.hers.discard(path)
        elif f'junk {name}' in layout['features']: world.put(path, JUNK[layout['junk']])
        else: continue
        whole.discard(name)
    return whole


def line(**row):
    return json.dumps(row).encode() + b'\n'


def build_indexes(world, runs, people, has, manifest):
    "Indexes of an album: lines by photo, and verdicts by person; returns what must be left of each"
    if 'no index' in has: world.put(runs/'notes.jsonl', b'{"a": 1}\n')
    if 'index' not in has: return {}
    head = line(faceid_index=1, key='k', made='m', rows=9)
    photos = manifest['photos'] if manifest else []
    hers = {record['sha256'] for record in photos if record['reason'] is None} | {digest(b'album of ann')}
    shas = {person: [digest(f'photo {k} of {person}'.encode()) for k in range(2)] for person in people}
    shard = [line(file=f'{person}.jpg', sha256=sha) for person in people for sha in shas[person]]
    shard += [line(file='g.jpg', sha256=digest(b'group')), line(sha256=[3])]
    if 'torn index' in has:
        shard += [b'{"torn\n', b'[1]\n', f'{{"sha256": "{shas["ann"][0]}'.encode()]
    verdicts = [line(subject=person, sha256=digest(f'album of {person}'.encode()), reason=None) for person in people]
    left = {}
    for name, lines in (('shards/0.jsonl', shard), ('verdicts.jsonl', verdicts)):
        path = world.put(runs/'album'/name, head + b''.join(lines))
        left[path] = head + b''.join(one for one in lines if not any(sha.encode() in one for sha in hers))
    return left


def snapshot(home):
    "Everything below a folder: what it is and what is in it"
    found, waiting = {}, [home]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                mode = entry.stat(follow_symlinks=False).st_mode
                if entry.is_symlink(): found[path] = ('link', os.readlink(path))
                elif entry.is_file(): found[path] = (mode, path.read_bytes())
                else: found[path] = ('folder' if entry.is_dir() else 'special', mode)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
    return found


def forget_all(known, stop):
    "Forget her, stopped once at some file when `stop` says so"
    if stop is None:
        assert residual_scan(known).files >= len(known.files), 'the proof must be able to see'
        return forget(known)
    unlink, count = os.unlink, [0]
    def refuse(path, *args, **more):
        if Path(path).parent == LOCKS: return unlink(path, *args, **more)
        count[0] += not os.path.basename(path).startswith(ASIDE)
        if count[0] > stop: raise PermissionError(13, 'Permission denied', str(path))
        return unlink(path, *args, **more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, 'unlink', refuse)
        try: return forget(known)
        except UserError as error: assert 'the same command again' in str(error)
    return forget(find_person_data(known.root, known.person))


@settings(max_examples=LAYOUTS, derandomize=True, deadline=None, database=None, suppress_health_check=[*HealthCheck])
@given(layout=LAYOUT)
def test_hers_goes_and_nothing_else(layout):
    home = Path(tempfile.mkdtemp(dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
    try: check(home, layout)
    finally: shutil.rmtree(home)


def check(home, layout):
    world, rows = build(home, layout)
    before = snapshot(home)
    if not world.known:
        with pytest.raises(UserError, match='No person named'): find_person_data(home/'runs', 'ann')
        assert snapshot(home) == before
        return
    known = find_person_data(home/'runs', 'ann')
    texts = person_data_text(known), unseen_text(known)
    assert all(line.isprintable() for text in texts for line in text.splitlines())
    if layout['stop'] is None:
        with pytest.raises(UserError, match='No person named'): find_person_data(home/'runs', 'nobody at all')
    assert snapshot(home) == before, 'a dry run or a refusal changed something'
    left = forget_all(known, layout['stop'])
    assert (left.files, left.rows, left.runs) == (0, 0, 0)
    after = snapshot(home)
    assert not world.hers & after.keys(), 'hers is left'
    files = {path: what for path, what in before.items() if what[0] != 'folder'}
    kept = {path: what for path, what in files.items() if path not in world.hers and path not in rows}
    assert {path: after.get(path) for path in kept} == kept, 'something of others is gone or changed'
    assert {path: path.read_bytes() for path in rows} == rows
    gone = {path for path, what in before.items() if what[0] == 'folder' and path not in after}
    runs = [home/'runs'/name for name in ('ann', 'alias', 'deep/er/ann2')]
    hers = [(path, run) for run in runs for path in world.hers if path.is_relative_to(run)]
    made = {parent for path, run in hers for parent in list(path.parents)[:len(path.parts) - len(run.parts)]}
    assert gone <= made, 'a folder of others is gone'
    empty = {path for path in made if path.is_dir() and not any(path.iterdir())}
    assert not empty, 'an empty folder of hers is left'


def test_marks_are_those_of_the_store():
    assert survey.MARKS == MARKS
