"Laws of evaluation: nothing scores by hiding, by order, or by averages of averages; and the page needs nobody"
from html import unescape
from html.parser import HTMLParser
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace
import numpy as np
import pytest
from faceid_nb.core.media import read_image, read_video
from faceid_nb.curation.packs import open_faces
from faceid_nb.evaluation.identity import FrameScores, FaceTrack, gallery_centre, real_ceiling, score_embeddings, score_frames, track_faces
from faceid_nb.evaluation.motion import keypoints, movement, pose_distances, steadiness, summarise_motion
from faceid_nb.evaluation.report import build_page, describe_training, headline, likeness_bars, likeness_curves, write_report
from faceid_nb.evaluation.grids import ALARM, GROUND, INK, PALETTE, SOFT, TRACK, PhotoCard, ReportData, four_way_grid, grid_colours
from faceid_nb.evaluation.statistics import relative_likeness, format_table, paired_gain, bootstrap_interval, summarise

SIZE = (48, 32)
DIMENSIONS = 16


class Colours:
    "Sees a face in every bright half of a picture; who it is, is its colour"
    def find(self, image, turns=()):
        halves = [image[:, :image.shape[1]//2], image[:, image.shape[1]//2:]]
        faces = [self.face(half, i) for i, half in enumerate(halves) if half.max() > 0]
        return sorted(faces, key=lambda face: -face.area)

    def face(self, half, i):
        wave = np.cos(np.outer(np.arange(1, DIMENSIONS + 1), half.reshape(-1, 3).mean(axis=0)/40)).sum(axis=1)
        spot = np.array([half.mean()/8, half.mean()/6])
        return SimpleNamespace(embedding=(wave/np.linalg.norm(wave)).astype(np.float32), keypoints=np.tile(spot, (5, 1)) + np.arange(5)[:, None], area=half.mean() + i)


def clip_of(colour, frames=8):
    "One colour in the left half, the right half dark"
    clip = np.zeros((frames, *SIZE, 3), np.uint8)
    clip[:, :, :SIZE[1]//2] = colour
    return clip


def unit(n, seed=0):
    rows = np.random.default_rng(seed).normal(size=(n, DIMENSIONS)).astype(np.float32)
    return rows/np.linalg.norm(rows, axis=1, keepdims=True)


def scores_of(values):
    values = np.asarray(values, np.float32)
    return FrameScores(values, values != 0, np.zeros(len(values), bool))


RED, BLUE = clip_of((200, 40, 30)), clip_of((30, 60, 220))
HERS = np.stack([Colours().find(RED[0])[0].embedding])


# ---- identity

def test_a_person_is_like_herself():
    assert np.allclose(score_frames(Colours(), RED, HERS).cosine, 1, atol=1e-5)
    assert score_frames(Colours(), BLUE, HERS).cosine.max() < .9


def test_black_frames_score_zero_and_are_reported():
    black = score_frames(Colours(), np.zeros_like(RED), HERS)
    assert not black.found.any() and (black.cosine == 0).all()
    assert summarise(black)['no_face_rate'] == 1. and summarise(black)['mean'] == 0.


def test_each_lost_frame_costs_its_share():
    holed = RED.copy()
    holed[:2] = 0
    assert np.isclose(summarise(score_frames(Colours(), holed, HERS))['mean'], 6/8, atol=1e-5)


def test_two_faces_are_counted_and_the_largest_is_scored():
    pair = RED.copy()
    pair[3, :, SIZE[1]//2:] = (60, 20, 10)
    scores = score_frames(Colours(), pair, HERS)
    assert scores.several.tolist() == [i == 3 for i in range(8)]
    assert np.isclose(scores.cosine[3], 1, atol=1e-5)
    assert summarise(scores)['several_faces_rate'] == 1/8


def test_shuffled_frames_change_nothing_but_the_curve():
    clip = np.concatenate([RED, BLUE])
    order = np.random.default_rng(1).permutation(16)
    one, other = (summarise(score_frames(Colours(), c, HERS)) for c in (clip, clip[order]))
    assert one == other


def test_the_order_of_the_gallery_does_not_matter():
    gallery = unit(6)
    assert np.allclose(gallery_centre(gallery), gallery_centre(gallery[::-1]), atol=1e-6)


@pytest.mark.parametrize('gallery,words', [
    (np.zeros((0, 4), np.float32), 'hold out'), (np.ones(4, np.float32), 'expected [(]N, D[)]'),
    (2*unit(3), 'expected 1'), (np.stack([unit(1)[0], -unit(1)[0]]), 'cancel')])
def test_a_bad_gallery(gallery, words):
    with pytest.raises(ValueError, match=words): gallery_centre(gallery)


def test_the_ceiling_leaves_the_photo_itself_out():
    strangers = unit(5, seed=3)
    assert real_ceiling(strangers).cosine.mean() < score_embeddings(strangers, strangers).cosine.mean() - .2
    with pytest.raises(ValueError, match='needs 2'): real_ceiling(strangers[:1])


def test_no_frames_is_an_error():
    with pytest.raises(ValueError, match='0 pictures'): track_faces(Colours(), [])


def test_real_people_with_a_real_recogniser(assets, tmp_path):
    "Held-out photos of one real person: others of hers are near the ceiling, strangers near the floor"
    place = tmp_path/'models'/'real'
    place.mkdir(parents=True)
    for name in ('scrfd_500m_kps.onnx', 'mobilefacenet_y1_arcface_128d.onnx'): shutil.copy(assets/'face_models'/name, place)
    faces = open_faces(tmp_path, 'real')
    def photos(group): return [read_image(path) for path in sorted((assets/'photos'/'lfw_10x10'/group).iterdir())]
    people = sorted(path.name for path in (assets/'photos'/'lfw_10x10').iterdir() if path.is_dir())
    own = photos(people[0])
    gallery = np.stack([face.embedding for face in track_faces(faces, own[:5]).faces if face is not None])
    same, real = score_frames(faces, own[5:], gallery), real_ceiling(gallery)
    strangers = score_frames(faces, [photo for who in people[1:] for photo in photos(who)[:2]], gallery)
    assert same.found.all() and strangers.found.all()
    assert summarise(same)['mean'] > .45 and summarise(strangers)['mean'] < .15
    assert relative_likeness(same.cosine.mean(), strangers.cosine.mean(), real.cosine.mean()) > .7


# ---- motion

def test_a_still_picture_is_steady_and_does_not_move():
    track = track_faces(Colours(), RED)
    assert np.allclose(steadiness(track), 1, atol=1e-5) and np.allclose(movement(track, 32), 0)


def test_a_clip_follows_itself_and_not_another():
    fading = np.stack([clip_of((40 + 20*i, 30, 30), 1)[0] for i in range(8)])
    track = track_faces(Colours(), fading)
    assert np.nanmax(pose_distances(track, keypoints(track), 32)) == 0
    assert np.nanmedian(pose_distances(track_faces(Colours(), RED), keypoints(track), 32)) > .01
    with pytest.raises(ValueError, match='same clip'): pose_distances(track, keypoints(track)[1:], 32)


def test_unmeasurable_motion_is_none_and_counts_as_missed():
    wanted = keypoints(track_faces(Colours(), RED))
    nobody = FaceTrack((None,)*8, np.zeros(8, bool))
    row = summarise_motion([nobody], [wanted], 32)
    assert row == {'pose_error': None, 'missed': 1., 'steadiness': None, 'movement': None}


# ---- statistics

CLIPS = [scores_of(np.random.default_rng(i).uniform(.4, 1, 5 + 3*i)) for i in range(6)]


def test_the_order_of_the_clips_does_not_matter():
    orders = [np.random.default_rng(s).permutation(6) for s in range(5)]
    rows = [summarise([CLIPS[i] for i in order]) for order in orders]
    assert all(row == rows[0] for row in rows)


def test_frames_are_counted_not_clips():
    long, short = scores_of(np.full(90, .9)), scores_of(np.full(10, .1))
    assert np.isclose(summarise([long, short])['mean'], .82, atol=1e-6)
    assert summarise([long, short])['frames'] == 100


def test_one_row_has_the_promised_keys():
    row = summarise(CLIPS)
    assert {'mean', 'median', 'spread', 'worst', 'low', 'high', 'no_face_rate', 'several_faces_rate', 'frames', 'clips'} == set(row)
    assert row['low'] <= row['mean'] <= row['high'] and row['worst'] <= row['median']


def test_more_clips_narrow_the_interval():
    def width(n): return np.subtract(*bootstrap_interval([scores_of(np.random.default_rng(i).normal(.8, .05, 9)) for i in range(n)])[::-1])
    assert width(40) < width(5)


def test_equal_clips_leave_no_doubt_and_one_clip_gives_no_interval():
    assert np.allclose(bootstrap_interval([CLIPS[0]]*4), summarise(CLIPS[0])['mean'])
    assert bootstrap_interval(CLIPS[:1]) == (None, None)


def test_a_paired_gain_sees_through_hard_dances():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, .15, 8)
    before = {str(i): scores_of(.6 + hard[i] + rng.normal(0, .005, 9)) for i in range(8)}
    after = {name: scores_of(one.cosine + .02 + rng.normal(0, .005, 9)) for name, one in before.items()}
    better = paired_gain(after, before)
    assert better['low'] > 0 and np.isclose(better['mean'], .02, atol=.005)
    assert bootstrap_interval(list(after.values()))[0] < bootstrap_interval(list(before.values()))[1]
    with pytest.raises(ValueError, match='one side'): paired_gain(after, {'0': before['0']})


@pytest.mark.parametrize('clips,words', [([], 'got 0'), ([scores_of([])], '0 frames'), ([scores_of([np.nan])], 'NaN')])
def test_nothing_to_summarise(clips, words):
    with pytest.raises(ValueError, match=words): summarise(clips)


def test_relative_likeness_runs_from_another_person_to_real_photos():
    assert (relative_likeness(.1, .1, .9), relative_likeness(.9, .1, .9)) == (0., 1.)
    with pytest.raises(ValueError, match='tell them apart'): relative_likeness(.5, .9, .1)


def test_the_table_is_straight():
    lines = format_table({'base': summarise(CLIPS), 'full': summarise(CLIPS[0])}).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1


# ---- report

def a_run(names=('base', 'mapper', 'lora', 'full'), dances=('waltz', 'tango')):
    rng = np.random.default_rng(0)
    poses = {dance: rng.integers(0, 255, (5, *SIZE, 3), dtype=np.uint8) for dance in dances}
    clips = {name: {dance: rng.integers(0, 255, (5, *SIZE, 3), dtype=np.uint8) for dance in dances} for name in names}
    scores = {name: {dance: scores_of(rng.uniform(.1, .9, 5)) for dance in dances} for name in names}
    photos = (PhotoCard(clips[names[0]][dances[0]][0], 'a.jpg', True, 'kept'), PhotoCard(poses[dances[0]][0], 'b.jpg', False, 'blurry'))
    return ReportData('A run', photos, poses, clips, scores, scores_of(rng.uniform(.9, 1, 4)), scores_of(rng.uniform(.01, .05, 9)), 10., facts={'Versions': {'torch': '2'}})


def test_the_page_needs_nobody(tmp_path):
    paths = write_report(tmp_path/'run', a_run())
    html = paths['report'].read_text(encoding='utf-8')
    assert not re.search(r'https?:|src="(?!data:)|href=|url\(|@import|<link|<iframe', html)
    assert html.count('data:video/mp4;base64,') == 2*5 and html.count('data:image/png;base64,') == 2
    assert "default-src 'none'" in unescape(html)
    assert len(read_video(paths['video'])[0]) == 5
    assert sorted(path.name for path in (tmp_path/'run').iterdir()) == ['grid.mp4', 'grid.png', 'report.html']


def test_the_page_says_who_was_trained_how():
    data = a_run()
    assert 'one trained whole' in build_page(data)
    assert 'was trained on its own' in build_page(replace(data, trained_alone=('mapper', 'lora', 'full')))
    assert describe_training(['base'], ()) == 'Base: the model before fine-tuning. '
    assert describe_training(['base', 'full'], ['full']).startswith('Base: the model before fine-tuning')


class Elements(HTMLParser):
    "List every element of a page with its attributes, and the text that a reader sees"
    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ''
        self.feed(page)

    def handle_starttag(self, tag, attributes): self.found.append((tag, dict(attributes)))

    def handle_data(self, text): self.text += text

    def all(self, tag): return [attributes for name, attributes in self.found if name == tag]


@pytest.mark.parametrize('wicked', [
    '"><script>alert(1)</script>', "' onmouseover='alert(1)", '" autofocus onfocus="alert(1)', '</style><img src=x>',
    '{{ 7*7 }}{% raw %}', '</svg><a href=javascript:alert(1)>'])
def test_names_cannot_break_out_of_the_page(wicked):
    data = a_run(names=('base', wicked), dances=('waltz', wicked))
    photos = (replace(data.photos[0], file=wicked, text=wicked),)
    data = replace(
        data, title=wicked, photos=photos, facts={wicked: {wicked: wicked}}, began_with=wicked,
        labels={'base': wicked + ' too'}, motion={wicked: {'pose_error': .1}})
    page, harmless = Elements(build_page(data)), Elements(build_page(a_run(names=('base', 'x'), dances=('waltz', 'y'))))
    assert {tag for tag, _ in page.found} <= {tag for tag, _ in harmless.found} | {'p', 'i'}
    attributes = [{key for tag, given in one.found for key in given} for one in (page, harmless)]
    assert attributes[0] <= attributes[1] and len(page.all('script')) == len(page.all('style')) == 1
    assert len(page.all('img')) == 1 and wicked in page.text and '49' not in page.text.split('Settings')[1]


# ---- report: colours, charts, clips

def rules(style):
    "Split a style sheet into what holds in light mode and what dark mode changes"
    dark = re.search(r'@media\(prefers-color-scheme:dark\)\{:root\{(.*?)\}\}', style, re.S)[1]
    light = re.search(r':root\{(.*?)\}', style, re.S)[1]
    bright = dict(re.findall(r'--(\w+):(#\w{6})\b', light))
    return bright, bright | dict(re.findall(r'--(\w+):(#\w{6})\b', dark))


def brightness(colour):
    parts = [int(colour[i:i + 2], 16)/255 for i in (1, 3, 5)]
    red, green, blue = (part/12.92 if part <= .04045 else ((part + .055)/1.055)**2.4 for part in parts)
    return .2126*red + .7152*green + .0722*blue


def contrast(one, other):
    low, high = sorted((brightness(one), brightness(other)))
    return (high + .05)/(low + .05)


def test_contrast_is_measured_as_the_standard_does():
    assert np.isclose(contrast('#000000', '#ffffff'), 21) and np.isclose(contrast('#777777', '#ffffff'), 4.48, atol=.01)


def test_all_text_of_the_page_can_be_read_in_light_and_in_dark():
    "Every text colour on each ground that text stands on: 4.5 to 1 (WCAG 2.2, 1.4.3)"
    style = re.search('<style>(.*?)</style>', build_page(a_run()), re.S)[1]
    used = re.findall(r'(?<![-\w])(?:color|fill):([^;}]+)', style)
    inks = {found[1] for value in used if (found := re.fullmatch(r'var\(--(\w+)\)', value.strip()))}
    assert {value for value in used if not value.startswith('var(')} <= {'none'}, 'a colour that dark mode cannot change'
    assert {'ink', 'soft', 'accent', 'yes', 'no', 'k'} <= inks
    inks = (inks - {'k'}) | {f's{i}' for i in range(len(PALETTE))}
    for values in rules(style):
        low = {(ink, ground): contrast(values[ink], values[ground]) for ink in inks for ground in ('paper', 'card')}
        assert min(low.values()) >= 4.5, sorted(low, key=low.get)[:3]
    bright, dark = rules(style)
    assert all(bright[name] != dark[name] for name in inks | {'paper', 'card', 'line'})


def test_all_text_of_a_grid_can_be_read():
    inks = [INK, SOFT, ALARM, *(dark for _, dark in PALETTE)]
    assert min(contrast(ink, GROUND) for ink in inks) >= 4.5
    assert min(contrast(dark, TRACK) for _, dark in PALETTE) >= 3


def row_of(mean, low=None, high=None):
    return {'mean': mean, 'low': low, 'high': high}


def boxes(bars): return [tuple(map(float, pair)) for pair in re.findall(r'<p class="s\d" style="left:([\d.]+)%;width:([\d.]+)%', bars)]


@pytest.mark.parametrize('impostor', [.05, 0., -.2])
def test_bars_begin_at_a_true_zero(impostor):
    "Twice the likeness is twice the length, whatever another person scores; below zero a bar goes to the left"
    bars = likeness_bars({'a': row_of(.4), 'b': row_of(.8), 'c': row_of(0.), 'd': row_of(-.1)}, impostor, .95)
    (_, one), (_, two), (_, none), (left, below) = boxes(bars)
    zero = float(re.search(r'class="zero" style="left:([\d.]+)%', bars)[1])
    assert np.isclose(two, 2*one, atol=.15) and none == 0 and np.isclose(left + below, zero, atol=.15)
    ticks = dict((value, float(at)) for at, value in re.findall(r'left:([\d.]+)%">([\d.]+)</span>', bars))
    assert list(ticks) == ['0', '0.25', '0.5', '0.75', '1'] and ticks['0'] == zero and ticks['1'] == 100
    assert np.isclose(zero + two, ticks['1']*.8 + zero*.2, atol=.15)


def test_charts_say_what_they_show():
    bars = Elements(likeness_bars({'full': row_of(.8, .7, .9)}, .1, .95, {'full': 'both'}))
    curve = Elements(likeness_curves({'full': scores_of([.5, .7])}, 'waltz', .1, .95, {'full': 'both'}))
    assert bars.all('div')[0]['aria-label'] == 'Mean likeness: both 0.80, another person 0.10, real photos 0.95.'
    assert curve.all('svg')[0]['aria-label'] == 'Likeness frame by frame in waltz; means: both 0.60.'
    assert 'likeness' in bars.text and all(word in curve.text for word in ('likeness', 'frame', 'waltz'))


def test_a_recogniser_that_prefers_the_impostor_still_has_a_chart():
    assert boxes(likeness_bars({'full': row_of(.3)}, .6, .5))[0][1] == 30


def test_labels_and_colours_come_with_the_data():
    names = tuple(f'part {i}' for i in range(len(PALETTE) + 1))
    colours = grid_colours(names)
    assert len(set(colours.values())) == len(PALETTE) and colours[names[0]] == colours[names[-1]]
    data = replace(a_run(names=('base', 'zzz')), labels={'zzz': 'Pose branch'})
    page = re.sub('base64,[^"]*', '', build_page(data))
    assert 'zzz' not in page and page.count('Pose branch') > 5


def test_a_configuration_has_one_colour_in_every_chart():
    "The order of `clips` decides, whatever the order of `scores`"
    data = a_run(names=('base', 'full'), dances=('waltz',))
    turned = replace(data, scores=dict(reversed(data.scores.items())))
    assert build_page(turned) == build_page(data)


def test_clips_have_controls_and_wait_for_a_reader_who_wants_less_motion():
    page = build_page(a_run())
    clips = Elements(page).all('video')
    assert len(clips) == 10 and all('controls' in clip and 'autoplay' not in clip for clip in clips)
    assert len({clip['aria-label'] for clip in clips}) == 10
    assert page.count('prefers-reduced-motion') == 2 and 'if (!still) videos[0].play()' in page


def test_settings_are_folded_away():
    page = Elements(build_page(replace(a_run(), facts={'choices': {f'key{i}': 'x' for i in range(90)}})))
    assert page.all('details') and not any('open' in one for one in page.all('details'))
    assert 'choices (90)' in page.text


def test_photos_are_described():
    assert [one['alt'] for one in Elements(build_page(a_run())).all('img')] == ['a.jpg, kept', 'b.jpg, rejected']


def test_the_headline_is_the_likeness_and_what_it_is_measured_against():
    row = row_of(.87) | {'no_face_rate': 0, 'frames': 9, 'clips': 2}
    number, words = headline({'base': row_of(.1), 'full': row}, .02, .94, {'full': 'both'})
    assert number == '0.87' and words.startswith('Likeness 0.87; real photos of this person score 0.94.')
    assert '92 % of the range' in words and words.endswith('generated with both.')
    assert '(counted as 0)' in headline({'full': row}, -.1, .94)[1]


def test_one_dance_has_no_interval_to_explain():
    one, two = (build_page(a_run(dances=dances)) for dances in (('waltz',), ('waltz', 'tango')))
    assert 'Thin line' not in one and 'of 1 unseen dance,' in one
    assert 'Thin line' in two and 'of 2 unseen dances,' in two
    assert not re.search(r'<td>[\d.]+%', two), 'every share has a space before its sign'


def test_the_page_stands_one_configuration_no_photo_no_face_and_a_blind_recogniser():
    data = a_run(names=('full',), dances=('waltz',))
    nobody = FrameScores(np.zeros(5, np.float32), np.zeros(5, bool), np.zeros(5, bool))
    assert '100.0 %' in build_page(replace(data, photos=(), scores={'full': {'waltz': nobody}}))
    assert 'cannot tell this person' in build_page(replace(data, real=data.impostor))


def test_a_run_that_does_not_fit_together():
    data = a_run()
    with pytest.raises(ValueError, match='one clip a dance'): replace(data, poses={'waltz': data.poses['waltz']})
    with pytest.raises(ValueError, match='has scores for'): replace(data, scores={})
    with pytest.raises(ValueError, match='one and the same'): four_way_grid({'base': RED, 'full': RED[:5]})


def test_a_failed_report_leaves_the_old_one(tmp_path, monkeypatch):
    paths = write_report(tmp_path, a_run())
    before = paths['report'].read_bytes()
    monkeypatch.setattr('faceid_nb.evaluation.report.write_atomic', lambda *a: (_ for _ in ()).throw(ValueError('the disk is full')))
    with pytest.raises(ValueError, match='disk is full'): write_report(tmp_path, a_run(names=('full',)))
    assert paths['report'].read_bytes() == before
