"""The laws of several people: shares, walks on the sphere, a bank on disk, photos that do not fit, and an identity that changes over the frames of a clip."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from faceid_nb.adapters.branch import attach_face_branch
from faceid_nb.adapters.lora import LoraSettings, attach_lora
from faceid_nb.adapters.mapper import MapperConfig
from faceid_nb.app.cli import main, read_weights
from faceid_nb.app.recipes import describe_keys, open_recipe
from faceid_nb.app.runner import open_run, phase_summary
from faceid_nb.app.store import PhaseResult
from faceid_nb.core.errors import UserError
from faceid_nb.core.files import ASIDE
from faceid_nb.core.media import read_video
from faceid_nb.embeddings import blend as module
from faceid_nb.embeddings.blend import add_person, blend, blend_people, check_same_encoder, find_person, get_person, list_people, save_new, shares, slerp
from faceid_nb.embeddings.identity import MODES, agreement, find_outliers, load_identity, make_identity, save_identity, softmax_weights, unit
from faceid_nb.inference.clips import read_clips_list
from faceid_nb.inference.generate import Sampling, generate
from faceid_nb.inference.sampler import Guide, windowed_velocity
from faceid_nb.models.wan_vace import WanHost, WanVACE
from faceid_nb.world.tiny import random_pipeline
from test_adapters import base_model
from test_adapters import ask as answer

PACK = {'detector.onnx': 'd'*64, 'recogniser.onnx': 'f'*64}
SIZES = MapperConfig(width=32, id_dim=24, tokens=3, hidden=32, rank=4)


def two(seed=0, dim=48):
    "Two unit vectors of float32"
    return unit(np.random.default_rng(seed).normal(size=(2, dim)))


def somebody(seed=0, dim=48, encoder=PACK, mode='mean', photos=4):
    rng = np.random.default_rng(seed)
    return make_identity(unit(rng.normal(size=dim) + .3*rng.normal(size=(photos, dim))), [f'{seed}_{i}.jpg' for i in range(photos)], encoder, mode)


# ---- shares and blends

@pytest.mark.parametrize('weights', [[.7, .3], [70, 30], [7e300, 3e300], [7e-300, 3e-300]])
def test_only_the_proportions_of_weights_count(weights):
    assert np.allclose(shares(weights), [.7, .3], atol=1e-12) and shares(weights).sum() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize('weights', [[], [0, 0], [1, -.1], [1, np.nan], [1, np.inf], [[1, 2]]])
def test_weights_that_are_no_shares_are_refused(weights):
    with pytest.raises(UserError): shares(weights)
    with pytest.raises(UserError): blend(two()[:len(weights)], weights)


@pytest.mark.parametrize('seed', range(5))
def test_a_blend_has_length_one_knows_no_order_and_keeps_its_ends(seed):
    rng = np.random.default_rng(seed)
    people, weights, order = unit(rng.normal(size=(5, 48))), rng.random(5), rng.permutation(5)
    mixed = blend(people, weights)
    assert mixed.dtype == np.float32 and abs(np.linalg.norm(mixed) - 1) < 1e-6
    assert np.allclose(mixed, blend(people[order], weights[order]), atol=1e-6)
    assert np.allclose(mixed, blend(people, 37*weights), atol=1e-6)
    for i in range(5): assert np.array_equal(blend(people, 3*np.eye(5)[i]), people[i])


def test_people_who_cancel_are_an_error():
    a, b = two()
    with pytest.raises(UserError, match='cancel each other'): blend(np.stack([a, -a]), [1, 1])
    with pytest.raises(UserError, match='cancel each other'): blend(np.stack([a, b, -a, -b]), [1, 2, 1, 2])
    assert np.allclose(blend(np.stack([a, -a]), [2, 1]), a, atol=1e-6)  # only equal weights cancel


# ---- walks

@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('dim', [2, 48, 1280])
def test_a_walk_stays_on_the_sphere_at_constant_speed_and_keeps_its_ends(seed, dim):
    (a, b), t = two(seed, dim), np.linspace(0, 1, 21)
    walk = slerp(a, b, t)
    assert walk.shape == (21, dim) and np.abs(np.linalg.norm(walk, axis=1) - 1).max() < 1e-6
    assert np.array_equal(walk[0], a) and np.array_equal(walk[-1], b)
    assert np.array_equal(slerp(a, b, 0), a) and np.array_equal(slerp(a, b, 1), b) and np.array_equal(slerp(a, b, t[3]), walk[3])
    assert np.allclose(walk, slerp(b, a, 1 - t), atol=1e-6)
    steps = np.linalg.norm(np.diff(walk, axis=0), axis=1)
    assert steps.max() - steps.min() < 1e-4*max(steps.max(), 1e-2)


@pytest.mark.parametrize('seed', range(5))
def test_similarity_falls_to_the_one_and_rises_to_the_other(seed):
    (a, b), t = two(seed), np.linspace(0, 1, 21)
    for walk in (slerp(a, b, t), np.stack([blend(np.stack([a, b]), [1 - s, s]) for s in t])):
        assert (np.diff(walk @ a) < 0).all() and (np.diff(walk @ b) > 0).all()


def test_the_limits_of_slerp():
    a, b = two()
    assert np.allclose(slerp(a, a, [0, .3, 1]), a, atol=1e-6)
    near = unit(a + 1e-6*b)
    assert np.isfinite(slerp(a, near, np.linspace(0, 1, 5))).all() and np.array_equal(slerp(a, near, 1), near)
    for opposite in (-a, unit(-a + 1e-5*b)):
        with pytest.raises(UserError, match='opposite') as error: slerp(a, opposite, .5)
        assert len(str(error.value).splitlines()) == 1
    for t in (-.1, 1.1, np.nan, [0, 2]):
        with pytest.raises(UserError, match='from t=0 to t=1'): slerp(a, b, t)


# ---- identities

def test_a_blend_of_people_comes_back_as_it_was(tmp_path):
    people = {'ann': somebody(1), 'ben': somebody(2, mode='median')}
    mixed = blend_people(people, {'ben': 30, 'ann': 70})
    assert np.array_equal(mixed.vector(), blend(np.stack([people['ann'].mean, people['ben'].median]), [.7, .3]))
    assert mixed.files == ('0.7 ann + 0.3 ben',) and mixed.encoder == PACK
    back = load_identity(save_new(tmp_path/'both', mixed), PACK)
    assert all(np.array_equal(back.vector(mode), mixed.vector()) for mode in MODES) and back.encoder == PACK
    assert np.array_equal(blend_people(people, {'ann': 0, 'ben': 2}).vector(), people['ben'].vector())


@pytest.mark.parametrize('other', [somebody(2, encoder=PACK | {'recogniser.onnx': 'e'*64}), somebody(2, encoder=None), somebody(2, dim=40)])
def test_people_of_different_encoders_are_refused_by_both_names(other):
    with pytest.raises(UserError, match='ann and ben were embedded by different face models'): blend_people({'ann': somebody(1), 'ben': other}, {'ann': 1, 'ben': 1})
    with pytest.raises(UserError, match='carl and ben'): check_same_encoder({'carl': somebody(1), 'dora': somebody(3), 'ben': other})


def test_a_blend_needs_two_people_and_a_weight_for_each():
    with pytest.raises(UserError, match='at least two'): blend_people({'ann': somebody(1)}, {'ann': 1})
    with pytest.raises(UserError, match='Give each a weight'): blend_people({'ann': somebody(1), 'ben': somebody(2)}, {'ann': 1, 'carl': 1})


# ---- a bank

def test_a_bank_gives_back_what_was_added(tmp_path):
    bank, people = tmp_path/'people', {name: somebody(i) for i, name in enumerate(['ben', 'Ann Smith', 'Zoë', 'a=b'])}
    for name, one in people.items(): add_person(bank, name, one)
    assert list_people(bank) == sorted(people)
    for name, one in people.items():
        back = get_person(bank, name, PACK)
        assert np.array_equal(back.photos, one.photos) and back.files == one.files and json.loads((bank/name/'identity.json').read_text())['subject'] == name
        assert (bank/name).stat().st_mode & 0o777 == 0o700 and {path.stat().st_mode & 0o777 for path in (bank/name).iterdir()} == {0o600}
        assert find_person(name, bank) == bank/name
    with pytest.raises(UserError, match="no 'carl' in .*: Ann Smith, Zoë, a=b, ben"): get_person(bank, 'carl')
    with pytest.raises(UserError, match='made by other face models'): get_person(bank, 'ben', PACK | {'detector.onnx': 'e'*64})


@pytest.mark.parametrize('name', ['', '.', '..', '../x', '/etc', 'a/b', 'a\\b', '-x', '~x', '.x', 'a\nb', 'a\0b', ' a', 'x'*101, 3])
def test_hostile_names_are_refused_and_make_nothing(tmp_path, name):
    for work in (lambda: add_person(tmp_path/'people', name, somebody()), lambda: get_person(tmp_path, name)):
        with pytest.raises(UserError): work()
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_is_there_is_touched(tmp_path):
    bank = tmp_path/'people'
    add_person(bank, 'ann', somebody(1))
    (bank/'mine').mkdir()
    (bank/'note.txt').write_text('mine')
    (tmp_path/'outside').mkdir()
    (bank/'link').symlink_to(tmp_path/'outside')
    (bank/'gone').symlink_to(tmp_path/'nowhere')
    before = {path: path.read_bytes() for path in bank.rglob('*') if path.is_file()}
    for name in ('ann', 'mine', 'note.txt', 'link', 'gone'):
        with pytest.raises(UserError): add_person(bank, name, somebody(2))
    assert {path: path.read_bytes() for path in bank.rglob('*') if path.is_file()} == before
    assert list_people(bank) == ['ann'] and list((tmp_path/'outside').iterdir()) == [] and not (tmp_path/'nowhere').exists()


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(folder, identity, about):
        (folder/'identity.safetensors').write_bytes(b'half')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(module, 'save_identity', full)
    with pytest.raises(OSError): save_new(tmp_path/'both', somebody())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_a_run_or_in_none_is_refused(tmp_path):
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'run.json').write_text('{}')
    for place, said in ((tmp_path/'run'/'x', 'inside the run folder'), (tmp_path/'no'/'x', 'there is no folder')):
        with pytest.raises(UserError, match=said): save_new(place, somebody())
    with pytest.raises(UserError, match='a run without an identity'): find_person(str(tmp_path/'run'))
    with pytest.raises(UserError, match='holds no identity'): find_person(str(tmp_path))


# ---- photos that do not fit

def test_softmax_weights_follow_their_formula():
    photos = somebody(1, photos=6).photos.astype(np.float64)
    cosine = np.array([photos[i] @ (rest := np.delete(photos, i, 0).mean(0))/np.linalg.norm(rest) for i in range(6)])
    assert np.allclose(agreement(photos), cosine, atol=1e-9)
    for tau in (.05, .1, 1): assert np.allclose(softmax_weights(photos, tau), np.exp(cosine/tau)/np.exp(cosine/tau).sum(), atol=1e-9)
    assert np.allclose(softmax_weights(photos, 1e3), 1/6, atol=1e-3) and softmax_weights(photos[:1]).tolist() == [1] and np.allclose(softmax_weights(photos[:2]), .5)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('wrong', [0, 1, 2])
def test_the_photos_of_others_are_named_and_kept(seed, wrong):
    good = somebody(seed, photos=10)
    rows = np.concatenate([good.photos, *(somebody(seed + 10 + i, photos=1).photos for i in range(wrong))])
    files = [*good.files, *(f'wrong_{i}.jpg' for i in range(wrong))]
    found = find_outliers(rows, files)
    assert {one.file for one in found} == set(files[10:]) and all(one.deviations >= 5 for one in found)
    assert all(one.file in str(one) for one in found) and len(make_identity(rows, files).photos) == len(rows)
    assert find_outliers(rows[:1], files[:1]) == [] and find_outliers(np.repeat(rows[:1], 5, 0), files[:5]) == []


def test_the_summary_of_embed_warns_of_an_outlier(tmp_path):
    result = {'train': 8, 'reference': 0, 'heldout': 2, 'same': .9, 'stranger': None}
    told = phase_summary(PhaseResult('embed', 'k', 1., result | {'outliers': ['a.jpg does not fit']}, {}), tmp_path)
    assert told.splitlines()[1:] == ['  warning: a.jpg does not fit']
    assert len(phase_summary(PhaseResult('embed', 'k', 1., result, {}), tmp_path).splitlines()) == 1


@pytest.mark.parametrize('mode', MODES)
def test_the_mode_of_a_recipe_represents_the_person(tmp_path, mode):
    assert open_recipe('tiny', {'embedding.mode': mode}).embedding.mode == mode
    identity = somebody(1, mode=mode)
    save_identity(tmp_path, identity)
    assert np.array_equal(load_identity(tmp_path).vector(), getattr(identity, mode)) and load_identity(tmp_path).mode == mode
    assert mode in describe_keys(open_recipe('tiny'))['embedding.mode'].allowed
    with pytest.raises(UserError, match='embedding.mode'): open_recipe('tiny', {'embedding.mode': 'best'})


# ---- an identity that changes over the frames of a clip

def shaken(lora=False):
    "A small denoiser with a branch that has an effect, its branch, and its base answer"
    model = base_model()
    base = answer(model)
    branch = attach_face_branch(WanHost(model), SIZES, torch.Generator().manual_seed(0))
    others = attach_lora(WanHost(model), LoraSettings(rank=4), torch.Generator().manual_seed(1)) if lora else None
    g = torch.Generator().manual_seed(2)
    for p in [*branch.parameters(), *(others.named_parameters().values() if lora else [])]: p.data += .2*torch.randn(p.shape, generator=g)
    return model, branch, base


def pair(): return torch.from_numpy(two(5, SIZES.id_dim))


@pytest.mark.parametrize('lora', [False, True])
def test_constant_over_frames_is_the_single_identity(lora):
    model, branch, base = shaken(lora)
    me, you = pair()
    branch.set_identity(me)
    single = answer(model)
    branch.set_identity(me[None, None])                 # one frame: the same road, to the last bit
    assert torch.equal(answer(model), single)
    branch.set_identity(torch.stack([me, me])[None])    # (1, F, D)
    assert torch.allclose(answer(model), single, atol=1e-5) and not torch.allclose(single, base, atol=1e-3)
    each = torch.stack([me, you])                       # one identity for each sample of the batch
    assert torch.allclose(answer(model, encoder_hidden_states_image=each[:, None].expand(-1, 2, -1)), answer(model, encoder_hidden_states_image=each), atol=1e-5)


def test_each_frame_is_its_own_person():
    model, branch, _ = shaken()
    me, you = pair()
    answers = []
    for identity in (me, you, torch.stack([me, you])[None], torch.stack([you, me])[None]):
        branch.set_identity(identity)
        answers.append(answer(model))
    mine, yours, mixed, turned = answers
    def apart(a, b, frame): return (a - b)[:, :, frame].abs().mean()
    assert apart(mixed, mine, 0) < .5*apart(mixed, yours, 0) and apart(mixed, yours, 1) < .5*apart(mixed, mine, 1)
    assert apart(turned, yours, 0) < .5*apart(turned, mine, 0) and apart(turned, mine, 1) < .5*apart(turned, yours, 1)


def test_one_attention_alone_gives_each_frame_exactly_its_own_person():
    "Before frames see each other: the attention to words and tokens, with hooks, against the same attention on each frame"
    model, branch, _ = shaken()
    attention, g = model.blocks[0].attn2, torch.Generator().manual_seed(3)
    queries, words, tokens = torch.randn(2, 2*6, 32, generator=g), torch.randn(2, 512, 32, generator=g), torch.randn(2, 2, 3, 32, generator=g)
    by_frame = branch.host._by_frame
    by_frame.frames = 2
    together = attention(queries, torch.cat([tokens.flatten(1, 2), words], 1))
    by_frame.frames = 1
    for f in range(2):
        alone = attention(queries[:, 6*f:6*f + 6], torch.cat([tokens[:, f], words], 1))
        assert torch.allclose(together[:, 6*f:6*f + 6], alone, atol=1e-5)


def test_the_laws_of_the_branch_hold_over_frames():
    model, branch, base = shaken()
    branch.set_identity(pair()[None])
    branch.scale = 0.
    assert torch.equal(answer(model), base)
    branch.scale = 1.
    assert not torch.allclose(answer(model), base, atol=1e-3)
    branch.set_identity(torch.zeros(1, 2, SIZES.id_dim))
    assert torch.allclose(answer(model), base, atol=1e-5)
    branch.set_identity(None)
    assert torch.equal(answer(model), base)
    branch.set_identity(pair()[None])
    branch.detach()
    assert torch.equal(answer(model), base)


def test_gradients_pass_to_the_mapper_through_every_frame():
    model, branch, _ = shaken()
    given = pair()[None].expand(2, -1, -1).clone().requires_grad_()
    g = torch.Generator().manual_seed(1)
    out = model(hidden_states=torch.randn(2, 16, 2, 6, 4, generator=g), timestep=torch.tensor([500.]*2), encoder_hidden_states=torch.randn(2, 512, 32, generator=g),
                control_hidden_states=torch.randn(2, 96, 2, 6, 4, generator=g), return_dict=False, encoder_hidden_states_image=given)[0]
    out.square().mean().backward()
    assert (given.grad.abs().sum(-1) > 0).all() and all(p.grad is not None and p.grad.any() for p in branch.parameters())


def test_a_wrong_number_of_frames_is_refused():
    model, branch, _ = shaken()
    branch.set_identity(torch.cat([pair(), pair()])[None, :3])
    with pytest.raises(ValueError, match='changes over 3 frames, and these latents have 2'): answer(model)
    with pytest.raises(UserError, match='identities of 24 numbers'): branch.set_identity(torch.zeros(1, 2, 7))


def test_windows_cut_an_identity_that_changes():
    seen = []
    def velocity(x, guides):
        seen.append({name: tensor.shape[-2] for name, tensor in guides[0].conditions.items()})
        return x
    x, rows = torch.randn(1, 3, 5, 2, 2), {'prompt_embeds': torch.zeros(1, 7, 4), 'id_embed': torch.arange(5.).view(1, 5, 1)}
    assert torch.equal(windowed_velocity(velocity, x, [Guide(rows)], [slice(0, 3), slice(2, 5)]), x)
    assert seen == [{'prompt_embeds': 7, 'id_embed': 3}]*2
    for constant in (torch.zeros(1, 4), torch.zeros(1, 1, 4)):
        seen.clear()
        windowed_velocity(velocity, x, [Guide({'id_embed': constant})], [slice(0, 3), slice(2, 5)])
        assert seen == [{'id_embed': 1}]*2


def test_a_clip_of_a_constant_walk_is_the_clip_of_the_person():
    g = torch.Generator().manual_seed(0)
    model = WanVACE(random_pipeline(0))
    host = model.hosts[0]
    adapters = {'face': attach_face_branch(host, MapperConfig(width=host.width, id_dim=24), g)}
    for parameter in adapters['face'].parameters(): parameter.data += .2*torch.randn(parameter.shape, generator=g)
    pose = np.zeros((5, 32, 48, 3), np.uint8)
    pose[:, 4:10, 8:24] = 200
    me, you = pair()
    draw = lambda who, scale=2.: generate(model, pose, 'a dance', Sampling(steps=2, guidance_scale=scale), adapters, who).astype(int)
    for scale in (1., 2.):
        assert np.abs(draw(torch.stack([me, me]), scale) - draw(me, scale)).max() <= 1
    assert np.array_equal(draw(torch.stack([me, you])), draw(torch.stack([me, you]))) and np.abs(draw(torch.stack([me, you])) - draw(me)).max() > 1
    with pytest.raises(UserError, match='changes over 3 frames, and a clip of 5 frames has 2 latent'): draw(torch.stack([me]*3))


# ---- the command line

def said(capsys, *words):
    code = main([*map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def folders(tmp_path, monkeypatch):
    "Two identities, in a folder of their own"
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(('ann', 'ben')): save_new(Path(name), somebody(seed))
    return tmp_path


def test_blend_writes_shares_and_similarities(folders, capsys):
    code, out, err = said(capsys, 'blend', 'ann=70', 'ben=30', '--out', 'both', '--json')
    known, page = json.loads(out), json.loads((folders/'both'/'identity.json').read_text())
    mixed = load_identity(folders/'both', PACK).vector()
    assert (code, err) == (0, '') and known['shares'] == pytest.approx({'ann': .7, 'ben': .3}) and page['blend'] == known['shares']
    for name, cosine in known['similarity'].items(): assert cosine == pytest.approx(mixed @ load_identity(folders/name).vector(), abs=1e-6)
    assert said(capsys, 'blend', 'ann=1', 'both=1', '--out', 'more', '--quiet')[1] == 'more\n'
    before = {path: path.read_bytes() for path in folders.rglob('*') if path.is_file()}
    assert said(capsys, 'blend', 'ann=1', 'ben=1', '--out', 'dry', '--dry-run')[0] == 0
    assert {path: path.read_bytes() for path in folders.rglob('*') if path.is_file()} == before and not (folders/'dry').exists()


@pytest.mark.parametrize('words, line', [
    (['ann=1', 'ben=1'], '--out FOLDER is missing'), (['ann=1', 'ben=1', '--out', 'ann'], 'ann exists already'), (['ann=1', '--out', 'x'], 'at least two people'),
    (['ann', 'ben', '--out', 'x'], "'ann' is not PERSON=WEIGHT"), (['ann=1', 'ann=2', '--out', 'x'], 'ann is given twice'), (['ann=1', 'ben=much', '--out', 'x'], 'must be a number'),
    (['ann=-1', 'ben=1', '--out', 'x'], 'got -1'), (['ann=0', 'ben=0', '--out', 'x'], 'All weights are 0'), (['ann=nan', 'ben=1', '--out', 'x'], 'got nan'),
    (['ann=1', 'carl=1', '--out', 'x'], 'carl holds no identity'), (['ann=1', 'ben=1', '--out', 'no/x'], 'there is no folder no'), ([], 'PERSON=WEIGHT is missing'),
    (['ann=1', 'ben=1', '--out', 'x', '--bank', 'no'], 'no is not a folder')])
def test_a_blend_that_makes_no_sense_is_one_line(folders, capsys, words, line):
    code, out, err = said(capsys, 'blend', *words)
    assert (code, out, len(err.splitlines())) == (2, '', 1) and line in err and not (folders/'x').exists()


def test_a_bank_on_the_command_line(folders, capsys):
    assert said(capsys, 'bank', 'people', 'anna=ann', 'b=ben') == (0, 'anna\nb\n', '')
    assert said(capsys, 'blend', 'anna=1', 'b=1', '--bank', 'people', '--out', 'people/both', '--quiet') == (0, 'people/both\n', '')
    assert json.loads(said(capsys, 'bank', 'people', '--json')[1])['people'] == ['anna', 'b', 'both']
    for word, line in (('../x=ann', 'one plain name'), ('anna=ben', 'exists already'), ('x=nowhere', 'holds no identity'), ('x', 'is not KEY=VALUE')):
        code, out, err = said(capsys, 'bank', 'people', 'new=ann', word)
        assert (code, out, len(err.splitlines())) == (2, '', 1) and line in err and not (folders/'people'/'new').exists(), word


def test_a_weight_may_follow_a_path_with_an_equals_sign(): assert read_weights(['a=b/c=.5', 'd=2']) == {'a=b/c': .5, 'd': 2.}


def test_a_morph_shows_both_and_is_listed_for_forget(demo, tmp_path, monkeypatch, capsys):
    from faceid_nb.app.models import pack_hashes
    monkeypatch.chdir(tmp_path)
    ann = load_identity(demo/'embed')
    other = make_identity(np.roll(ann.photos, 1, 1), ann.files, pack_hashes(open_run(demo)))
    save_new(Path('ben'), other)
    assert said(capsys, 'morph', demo, 'ben', '--dry-run', '--quiet') == (0, f'{demo.name}_to_ben.mp4\n', '') and sorted(path.name for path in tmp_path.iterdir()) == ['ben']
    for words, line in (([demo, demo], 'are the same person'), ([demo, 'carl'], 'carl holds no identity'), (['ben', demo], 'not a run folder'), ([demo, 'ben', '--out', 'x.gif'], 'must end with .mp4'),
                        ([demo, 'ben', '--pose', 'x.mp4'], 'no pose clip'), ([demo, 'ben', 'model.face_branch='], 'no pretrained face branch')):
        code, out, err = said(capsys, 'morph', *words)
        assert (code, out, len(err.splitlines())) == (2, '', 1) and line in err, words
    clips = []
    for words in (['morph', demo, 'ben', '--out', 'walk.mp4'], ['generate', demo, '--identity', 'ben', '--out', 'other.mp4'], ['generate', demo, '--identity', demo, '--out', 'same.mp4']):
        code, out, err = said(capsys, *words, '--quiet')
        assert code == 0, err
        clips.append(read_video(out.strip())[0].astype(float))
    walk, there, here = clips
    recipe = open_run(demo)
    assert walk.shape == (recipe.num_frames, *recipe.size, 3)
    def apart(a, b, frame): return np.abs(a[frame] - b[frame]).mean()
    assert apart(walk, here, 0) < apart(walk, there, 0) and apart(walk, there, -1) < apart(walk, here, -1)
    assert {Path(path).name for path in read_clips_list(demo).elsewhere} == {'walk.mp4', 'other.mp4', 'same.mp4'}
    assert said(capsys, 'blend', f'{demo}=1', 'ben=1', '--out', 'both')[0] == 0
    assert str(tmp_path/'both'/'identity.safetensors') in read_clips_list(demo).elsewhere
    assert not [path for path in tmp_path.rglob('*') if path.name.startswith(ASIDE)]
    code, out, err = said(capsys, 'generate', demo, '--identity', 'ben', '--lora', 'x.safetensors')
    assert code == 2 and '--lora belongs to the person of the run' in err
