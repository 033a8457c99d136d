"""Laws of the numbers: what is measured of faces whose place and person are known, and how sure a figure may be."""
import json

import numpy as np
import pytest
from test_evaluation import scores_of, unit

from faceid_nb.app.verbs import compare_runs
from faceid_nb.curation.faces import Face
from faceid_nb.evaluation.identity import FaceTrack, FrameScores, real_ceiling, score_track
from faceid_nb.evaluation.motion import keypoints, summarise_motion
from faceid_nb.evaluation.statistics import relative_likeness, paired_gain, bootstrap_interval, summarise

ANN, BOB = np.eye(16, dtype=np.float32)[:2]
POINTS = np.array([[30, 40], [50, 40], [40, 50], [33, 60], [47, 60]], np.float32)


def track(people, shift=(0, 0), step=(0, 0)):
    "A clip with one face a frame, None for no face, moved by `shift` and by `step` more in every frame"
    box = np.array([20, 20, 60, 80], np.float32)
    places = [POINTS + shift + i*np.array(step, np.float32) for i in range(len(people))]
    faces = [None if who is None else Face(box, place, .9, who) for who, place in zip(people, places)]
    return FaceTrack(tuple(faces), np.zeros(len(people), bool))


def test_movement_and_pose_error_are_in_frame_widths():
    "A face that walks 3 and 4 pixels a frame walks 5; one that is 6 and 8 pixels off is 10 off"
    driving = keypoints(track([ANN]*9, step=(3, 4)))
    row = summarise_motion([track([ANN]*9, shift=(6, 8), step=(3, 4))], [driving], 100)
    assert row == pytest.approx({'pose_error': .1, 'missed': 0., 'steadiness': 1., 'movement': .05})


def test_a_face_that_changes_is_not_steady():
    driving = keypoints(track([ANN]*8))
    changing = summarise_motion([track([ANN, BOB]*4)], [driving], 100)
    assert changing['steadiness'] == pytest.approx(0.)
    lost = summarise_motion([track([ANN, ANN, None, ANN, None, None, ANN, ANN])], [driving], 100)
    assert lost['missed'] == pytest.approx(3/8) and lost['steadiness'] == pytest.approx(1.)


def test_the_share_of_frames_with_the_person_is_the_score():
    gallery = np.stack([ANN, ANN])
    for people in ([ANN]*4, [ANN, BOB]*2, [ANN, None]*2, [None]*4):
        scores = score_track(track(people), gallery)
        assert summarise(scores)['mean'] == pytest.approx(sum(who is ANN for who in people)/4)
        assert summarise(scores)['no_face_rate'] == sum(who is None for who in people)/4 and len(scores.cosine) == 4


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    "Eight clips whose means scatter, 600 repetitions: ours holds it in 93 %, the plain percentile bootstrap in 87 %"
    rng, held = np.random.default_rng(0), 0
    for _ in range(600):
        clips = [scores_of(.5 + rng.normal(0, .1) + rng.normal(0, .02, 9)) for _ in range(8)]
        low, high = bootstrap_interval(clips, resamples=1000)
        held += low <= .5 <= high
    assert .9 <= held/600 <= .98


def test_an_interval_is_about_clips_not_about_frames():
    "More frames of the same clips make nothing surer"
    rng = np.random.default_rng(1)
    means = rng.normal(.6, .1, 6)
    def width(frames): return np.subtract(*bootstrap_interval([scores_of(np.full(frames, m)) for m in means])[::-1])
    assert width(5) == pytest.approx(width(80), rel=1e-3)


def test_a_gain_has_the_sign_of_the_change():
    before = {str(i): scores_of([.3 + i/100]*5) for i in range(4)}
    after = {name: scores_of(one.cosine + .1) for name, one in before.items()}
    assert paired_gain(after, before)['mean'] == pytest.approx(.1) == -paired_gain(before, after)['mean']


def test_the_road_begins_no_lower_than_zero():
    "To be unlike somebody is no likeness: below a stranger of -0.2 nobody is on the way"
    assert relative_likeness(0., -.2, .8) == 0.
    assert relative_likeness(.4, -.2, .8) == pytest.approx(.5)
    assert relative_likeness(.5, .2, .8) == pytest.approx(.5)


def test_the_ceiling_judges_each_photo_by_the_others():
    gallery = unit(6, seed=2)
    wanted = [photo @ (rest := np.delete(gallery, i, 0).sum(0))/np.linalg.norm(rest) for i, photo in enumerate(gallery)]
    assert np.allclose(real_ceiling(gallery).cosine, wanted, atol=1e-5)


def test_a_score_knows_no_order_and_no_scale_of_clips():
    one, two = FrameScores(np.array([.1, .2, .6], np.float32), np.ones(3, bool), np.zeros(3, bool)), scores_of([.8])
    assert summarise([one, two])['mean'] == pytest.approx(np.mean([.1, .2, .6, .8]))
    assert summarise([one, two])['median'] == pytest.approx(np.median([.1, .2, .6, .8]))
    assert summarise([one, two])['spread'] == pytest.approx(np.std([.1, .2, .6, .8]))


def test_a_comparison_ends_in_the_mean_the_lowest_and_the_highest(tmp_path):
    names = ('base', 'mapper', 'lora', 'full', 'real', 'stranger')
    means = np.random.default_rng(0).uniform(.1, .9, (3, len(names))).round(3)
    for k, row in enumerate(means):
        numbers = {'median': .5, 'no_face_rate': 0., 'frames': 10}
        identity = {name: numbers | {'mean': mean} for name, mean in zip(names, row)}
        summary = {'subject': f'ann{k}', 'seed': k, 'photos': {'given': 9, 'kept': 8}, 'identity': identity}
        summary |= {'seconds': {}, 'models': {}, 'versions': {}}
        (tmp_path/f'{k}').mkdir()
        (tmp_path/f'{k}'/'summary.json').write_text(json.dumps(summary))
    found = compare_runs([tmp_path/f'{k}' for k in range(3)])
    for key, row in {'mean': means.mean(0), 'lowest': means.min(0), 'highest': means.max(0)}.items():
        assert list(found[key].values()) == pytest.approx(row)
    assert [list(one['likeness'].values()) for one in found['runs']] == pytest.approx(means)
