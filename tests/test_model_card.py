"""The card beside the shipped weights says what they are and what they can do; here its words are held against the files."""
from pathlib import Path

import pytest

from faceid_nb.core.files import file_sha256, read_json
from faceid_nb.world.model_card import BARS, Exam, exam_detector, exam_recogniser, check_bars, open_pack
from faceid_nb.world.shipped import WEIGHTS


@pytest.fixture(scope='module')
def card(): return read_json(WEIGHTS/'card.json')


def files(): return sorted(p for p in WEIGHTS.rglob('*') if p.is_file() and p.name not in ('card.json', 'LICENSE'))


def test_the_card_names_every_file_by_its_hash(card):
    assert card['sha256'] == {p.relative_to(WEIGHTS).as_posix(): file_sha256(p) for p in files()}


def test_weights_are_small_and_hold_no_code(card):
    assert sum(p.stat().st_size for p in files()) <= 90_000_000
    assert {p.suffix for p in files()} <= {'.safetensors', '.onnx', '.json'}


def test_the_card_says_how_the_weights_were_made(card):
    assert set(card['stages']) == {'critic', 'critic_0', 'critic_1', 'critic_2', 'recogniser', 'detector', 'tuning', 'vae', 'decoder', 'latents', 'denoiser', 'together', 'likeness',
                                   'judge', 'appearance', 'whole', 'poses'}
    assert {'plan', 'minutes', 'device', 'versions', 'exam', 'figures'} <= set(card)
    assert all('seed' in card['plan'][name] for name in ('critic', 'recogniser', 'detector', 'tuning', 'vae', 'decoder', 'denoiser', 'together', 'likeness',
                                                             'judge', 'appearance', 'whole', 'poses'))


def test_the_card_reports_every_bar_and_never_a_better_one(card):
    rows = check_bars(card['figures'])
    assert [r[0] for r in rows] == list(BARS)
    assert {name for name, _, _, good in rows if not good} == set(card.get('short', [])), 'a figure that falls short is named in the card, and only such a figure'


def test_the_face_pack_measured_anew(card):
    "A small exam with people of its own: the figures of the card are no lucky draw"
    app, small = open_pack(Path(WEIGHTS)/'faces', 'tiny'), Exam(pictures=48, people=24, photos=4, seed=77)
    detector, recogniser = exam_detector(app, small), exam_recogniser(app, small)
    assert detector['found'] > .95 and detector['false'] < .04
    assert recogniser['auc'] > .999 and recogniser['tar'] > .95
