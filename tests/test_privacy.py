"""Faces are biometric data: everything made of a person's photos can be found and removed, with proof, and none of it leaves the machine."""
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from PIL import Image

from faceid_nb.app.cli import main
from faceid_nb.app.erasure import files_below, forget, holding, made, traces
from faceid_nb.app.store import MARKS
from faceid_nb.core.files import file_sha256, read_json
from faceid_nb.curation.manifest import load_manifest
from faceid_nb.curation.scale import Index, read_index, whole, write_index
from faceid_nb.world.people import random_people
from faceid_nb.world.scenes import take_photo

SMALL = ['curation.min_photos=3', 'pack.det_sides=192']


@pytest.fixture(scope='module')
def made_once(tmp_path_factory):
    "Photos of ann and bob, and one run of each, embedded"
    home, generator = tmp_path_factory.mktemp('privacy'), torch.Generator().manual_seed(3)
    for name, person in zip(('ann', 'bob'), random_people(2, generator)):
        (home/'photos'/name).mkdir(parents=True)
        for k in range(5): Image.fromarray(take_photo(person, 'single', (400, 300), generator)[0]).save(home/'photos'/name/f'{k}.jpg', quality=92)
        assert main(['curate', str(home/'photos'/name), '--folder', str(home/'runs'/name), *SMALL]) == 0
    assert main(['embed', str(home/'runs'/'ann')]) == 0
    return home


@pytest.fixture
def home(made_once, tmp_path):
    "A copy to forget in"
    shutil.copytree(made_once, tmp_path/'home')
    for name in ('ann', 'bob'):  # a run knows its photos by their place
        path = tmp_path/'home'/'runs'/name/'run.json'
        path.write_text(path.read_text().replace(str(made_once), str(tmp_path/'home')))
    return tmp_path/'home'


def content(folder): return {p: file_sha256(p) for p in files_below(folder)}


def said(capsys, *words):
    code = main([str(w) for w in words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_every_derived_file_is_gone_and_nothing_else(home, capsys):
    runs = home/'runs'
    photos, bob, ann = content(home/'photos'), content(runs/'bob'), content(runs/'ann')
    copies = [runs/'backup'/'old.png', runs/'bob'/'from_ann.png']
    crop = next((runs/'ann'/'curate'/'crops').iterdir())
    (runs/'backup').mkdir()
    for copy in copies: shutil.copy(crop, copy)
    names = {name: [p.sha256 for p in load_manifest(runs/name/'curate').kept()] for name in ('ann', 'bob')}
    rows = tuple({'file': f'{name}{i}.jpg', 'sha256': sha} for name, shas in names.items() for i, sha in enumerate(shas))
    write_index(runs/'album'/'shards'/'0.jsonl', Index('k', 'm', rows))
    write_index(runs/'album'/'verdicts.jsonl', Index('k', 'm', ({'subject': 'ann', 'file': 'x.jpg', 'sha256': 'f'*64, 'reason': None},)))

    code, out, _ = said(capsys, 'forget', 'ann', '--runs', runs, '--yes')
    assert code == 0 and '0 files, 0 index lines and 0 run folders left' in out and all(str(copy) in out for copy in copies)
    left = content(runs)
    assert not set(left.values()) & (set(ann.values()) - set(bob.values()))
    assert not (runs/'ann').exists() and not any(copy.exists() for copy in copies)
    assert {p: sha for p, sha in left.items() if p.is_relative_to(runs/'bob')} == bob
    assert content(home/'photos') == photos
    assert [row['file'] for row in read_index(runs/'album'/'shards'/'0.jsonl').rows] == [f'bob{i}.jpg' for i in range(len(names['bob']))]
    assert not read_index(runs/'album'/'verdicts.jsonl').rows
    assert not whole(runs/'album'/'shards'/'0.jsonl', 'k'), 'an index that lost lines must not pass for whole'
    for path in left:
        text = path.read_bytes()
        assert not any(sha.encode() in text for sha in names['ann']), f'{path} still names a photo of ann'


def test_the_proof_can_see(home):
    known = holding(home/'runs', 'ann')
    before = traces(home/'runs', known)
    assert before.files == len(known.files) > 10 and before.runs == 1
    assert not any(p.is_relative_to(home/'photos') for p in known.files)


def test_dry_run_and_no_answer_remove_nothing(home, capsys, monkeypatch):
    before = content(home)
    code, out, _ = said(capsys, 'forget', 'ann', '--runs', home/'runs', '--dry-run')
    assert code == 0 and 'curate' in out and 'embed' in out
    code, _, err = said(capsys, 'forget', 'ann', '--runs', home/'runs')
    assert code == 2 and '--yes' in err and len(err.splitlines()) == 1
    monkeypatch.setattr('sys.stdin.isatty', lambda: True, raising=False)
    monkeypatch.setattr('builtins.input', lambda _: 'no')
    assert said(capsys, 'forget', 'ann', '--runs', home/'runs')[0] == 2
    assert content(home) == before
    monkeypatch.setattr('builtins.input', lambda _: 'yes')
    assert said(capsys, 'forget', 'ann', '--runs', home/'runs')[0] == 0
    assert not (home/'runs'/'ann').exists()


@pytest.mark.parametrize('name, known', [('carl', 'ann, bob'), ('Ann', 'ann, bob')])
def test_somebody_unknown(home, capsys, name, known):
    before = content(home)
    code, _, err = said(capsys, 'forget', name, '--runs', home/'runs', '--yes')
    assert code == 2 and known in err and len(err.splitlines()) == 1
    assert content(home) == before


def test_no_runs_at_all(tmp_path, capsys):
    assert 'is not a folder' in said(capsys, 'forget', 'ann', '--runs', tmp_path/'nowhere', '--yes')[2]
    assert 'known are: nobody' in said(capsys, 'forget', 'ann', '--runs', tmp_path, '--yes')[2]


def test_own_photos_inside_the_run_folder_stay(home, capsys):
    run = home/'runs'/'ann'
    shutil.move(home/'photos'/'ann', run/'photos')
    shutil.copy(run/'photos'/'0.jpg', home/'runs'/'0.jpg')
    (run/'run.json').write_text((run/'run.json').read_text().replace(str(home/'photos'/'ann'), str(run/'photos')))
    (run/'letter.txt').write_text('mine')
    photos = content(run/'photos')
    code, out, _ = said(capsys, 'forget', 'ann', '--runs', home/'runs', '--yes')
    assert code == 0 and 'letter.txt, which no run made' in out
    assert content(run/'photos') == photos and (home/'runs'/'0.jpg').is_file()
    assert sorted(p.name for p in run.iterdir()) == ['letter.txt', 'photos']


def test_another_name_for_the_same_crops(home, capsys):
    assert main(['curate', str(home/'photos'/'ann'), '--folder', str(home/'runs'/'x'), *SMALL, 'subject=miss x']) == 0
    code, out, _ = said(capsys, 'forget', 'ann', '--runs', home/'runs', '--yes')
    assert code == 0 and 'there called miss x' in out and not (home/'runs'/'x').exists()


def test_a_group_photo_in_somebody_elses_run_is_named(home, capsys):
    manifest = home/'runs'/'bob'/'curate'/'manifest.json'
    ann = read_json(home/'runs'/'ann'/'curate'/'manifest.json')['photos'][0]
    text = manifest.read_text().replace('"photos": [', '"photos": [{"file": "ann.jpg", "sha256": "%s", "reason": "not_subject", "crops": []},' % ann['sha256'], 1)
    manifest.write_text(text)
    out = said(capsys, 'forget', 'ann', '--runs', home/'runs', '--dry-run')[1]
    assert 'the run of somebody else, looked at 1 of the photos' in out


def test_stopped_half_way_it_goes_on(home, monkeypatch, capsys):
    runs, known = home/'runs', holding(home/'runs', 'ann')
    stuck, unlink = list(known.files)[len(known.files)//2], type(home).unlink
    def refuse(path, missing_ok=False):
        if path == stuck: raise PermissionError(13, 'Permission denied', str(path))
        unlink(path, missing_ok)
    monkeypatch.setattr(type(home), 'unlink', refuse)
    code, _, err = said(capsys, 'forget', 'ann', '--runs', runs, '--yes')
    assert code == 2 and stuck.name in err and 'Permission denied' in err and 'goes on from here' in err
    monkeypatch.setattr(type(home), 'unlink', unlink)
    assert 0 < len(holding(runs, 'ann').files) < len(known.files)
    assert said(capsys, 'forget', 'ann', '--runs', runs, '--yes')[0] == 0
    assert traces(runs, known).files == 0


def test_links_are_unlinked_not_followed(home):
    target = home/'photos'/'ann'
    (home/'runs'/'ann'/'curate'/'link').symlink_to(target)
    before = content(target)
    forget(home/'runs', holding(home/'runs', 'ann'))
    assert content(target) == before and not (home/'runs'/'ann').exists()


def test_a_killed_curation_has_a_name(tmp_path, made_once):
    "Killed in its first step, a run folder already says whom it is about"
    run = tmp_path/'runs'/'ann'
    script = f'''
        import os, signal
        from faceid_nb.app import phases
        from faceid_nb.app.recipes import open_recipe
        def killed(*args, **more): os.kill(os.getpid(), signal.SIGKILL)
        phases.curate = killed
        phases.run_curate(open_recipe('tiny', {{'subject': 'ann', 'inputs.photos': {str(made_once/'photos'/'ann')!r}}}), {str(run)!r})'''
    subprocess.run([sys.executable, '-W', 'ignore', '-c', textwrap.dedent(script)], capture_output=True)
    assert any((run/'curate'/mark).is_file() for mark in MARKS)
    forget(tmp_path/'runs', holding(tmp_path/'runs', 'ann'))
    assert not run.exists() and made(run) == []


def test_curation_and_embedding_open_no_connection(tmp_path, made_once):
    "From import to identity: no connection, no name looked up, no program started"
    script = f'''
        import sys
        done = []
        def watch(event, args):
            if event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto', 'socket.gethostbyname', 'urllib.Request', 'subprocess.Popen', 'os.system'): done.append((event, str(args)[:200]))
        sys.addaudithook(watch)
        from faceid_nb.app.cli import main
        assert main(['curate', {str(made_once/'photos'/'ann')!r}, '--folder', {str(tmp_path/'run')!r}, *{SMALL!r}]) == 0
        assert main(['embed', {str(tmp_path/'run')!r}]) == 0
        bad = [d for d in done if d[0] != 'subprocess.Popen']
        assert not bad, bad
    '''
    work = subprocess.run([sys.executable, '-W', 'ignore', '-c', textwrap.dedent(script)], capture_output=True, text=True)
    assert work.returncode == 0, work.stderr[-2000:]
