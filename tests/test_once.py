"""Work is done once a command: a finished run again plans every phase once, reads every file once, and imports no large library."""
import builtins
import subprocess
import sys
import time
from collections import Counter
from shutil import copytree

import pytest

from conftest import QUICK
from faceid_nb.app import phases, runner
from faceid_nb.app.runner import find_problems
from faceid_nb.app.recipes import open_recipe
from faceid_nb.app.verbs import compare_runs, rehearse
from faceid_nb.core import files
from faceid_nb.embeddings.work import ORDER

WORDS = dict(pair.split('=') for pair in QUICK)
LARGE = ('diffusers', 'transformers', 'peft', 'matplotlib', 'IPython', 'scipy.stats', 'scipy.cluster')


@pytest.fixture(scope='module')
def finished(demo):
    time.sleep(files.SETTLED + .2)  # a younger file is read each time, because it could change again unseen
    return demo


def test_every_phase_is_planned_once_and_every_file_read_once(finished, monkeypatch):
    planned, opened = Counter(), Counter()
    def counting(name, plan):
        def count(*args):
            planned[name] += 1
            return plan(*args)
        return count
    for name, plan in list(phases.PLANS.items()):
        monkeypatch.setitem(phases.PLANS, name, counting(name, plan))
    def count_open(path, mode='r', *args, **named):
        if mode == 'rb': opened[str(path)] += 1
        return builtins.open(path, mode, *args, **named)
    monkeypatch.setattr(files, 'open', count_open, raising=False)
    files.HASHED.clear()
    runner.run_all(open_recipe('tiny', WORDS), finished, tell=lambda line: None)
    assert planned == dict.fromkeys(ORDER, 1)
    assert opened and set(opened.values()) == {1}, [path for path, n in opened.items() if n > 1]


def test_a_finished_run_needs_no_large_library(finished):
    script = f"""import sys
from faceid_nb.app.cli import main
sys.argv = ['faceid', 'demo', '--folder', {str(finished)!r}, *{QUICK!r}]
try: main(sys.argv[1:])
except SystemExit as end: assert not end.code, end.code
print([name for name in {LARGE!r} if name in sys.modules], file=sys.stderr)"""
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr.strip().splitlines()[-1] == '[]', done.stderr


def test_all_that_is_missing_is_said_at_once(tmp_path):
    missing = {'inputs.dances': str(tmp_path/'nowhere'), 'inputs.reference': str(tmp_path/'x.jpg')}
    wrong = open_recipe('tiny', WORDS | missing | {'model.where': str(tmp_path)})
    todo, _, problems = find_problems(wrong, tmp_path/'run')
    assert todo == ORDER and len(problems) == 3 and not (tmp_path/'run').exists()
    assert all('\n' not in problem for problem in problems)


def test_changed_settings_say_what_happens_to_the_report(finished, tmp_path, capsys):
    run = tmp_path/'run'
    copytree(finished, run)
    other = open_recipe('tiny', WORDS | {'training.steps_b': 3})
    said = f'The settings or inputs changed since the last run in {run}: its report and clips are'
    assert rehearse(open_recipe('tiny', WORDS), run, 'evaluate').figures['outdated'] == ''
    assert rehearse(other, run, 'evaluate').text.splitlines()[2] == f'{said} replaced.', 'after the work to do and its cost'
    assert (run/'report.html').exists()
    capsys.readouterr()
    runner.run_train(other, run)
    assert capsys.readouterr().out == f'{said} removed. For new ones run: faceid evaluate {run}\n'
    assert not (run/'report.html').exists()
    with pytest.raises(ValueError, match='evaluation that is out of date. Run: faceid evaluate'): compare_runs([run])
    runner.run_train(other, run)
    assert capsys.readouterr().out == '', 'the report has gone already'


def test_a_pose_clip_that_does_not_fit_is_refused_before_the_training(finished, tmp_path):
    from faceid_nb.core.media import read_video, write_video
    frames, fps = read_video(next((finished/'input'/'dances').glob('*_pose.mp4')))
    (tmp_path/'dances').mkdir()
    write_video(tmp_path/'dances'/'waltz_pose.mp4', frames[:3], fps)
    recipe = open_recipe('tiny', WORDS | {'inputs.dances': str(tmp_path/'dances')})
    with pytest.raises(ValueError, match='waltz'): runner.run_all(recipe, tmp_path/'run', tell=lambda line: None)
    assert not (tmp_path/'run').exists(), 'no photo was curated and nothing was trained'


def test_curation_stores_what_the_encoder_would_compute(finished):
    "Later phases read what curation stored; it equals the embedding of a photo decoded again"
    from faceid_nb.app.models import face_finder
    from faceid_nb.curation.manifest import load_manifest
    from faceid_nb.embeddings.encoders import embed_photos
    from faceid_nb.embeddings.work import load_faces, stored_rows
    manifest, faces = load_manifest(finished/'curate'), load_faces(finished/'curate')
    again = embed_photos(face_finder(open_recipe('tiny', WORDS)), manifest, finished/'input'/'subject'/'photos')
    cosine = (stored_rows(faces, manifest.kept())*again).sum(1)
    assert cosine.min() > .9999, 'the manifest rounds key points to hundredths of a pixel'
    assert {photo.sha256 for photo in manifest.photos if photo.reason != 'unreadable'} <= set(faces.thumbs)
