"""Tell look-alikes apart: generate both people of many pairs without any tuning, and ask whether each clip is nearer to its own photos.

    python benchmarks/lookalikes.py
    python benchmarks/lookalikes.py --pairs 100 --near 1.5 --far 4 --json

The second person of a pair is the first one, moved by a distance from `--near` to `--far` in a random direction of the traits; two
random people are about 8.5 apart. Both dance the same dance from the same noise with the same words, so nothing but the identity
differs. A clip is right if the mean direction of its faces is nearer to photos of its own person than to photos of the other one;
a clip without a face is wrong. The photos that judge are not those that give the identity. The interval draws pairs, not clips."""
import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from tqdm.auto import tqdm

from faceid_nb.adapters.branch import load_branch
from faceid_nb.app.models import face_finder, identity_encoders, open_judge_of, open_model
from faceid_nb.app.recipes import tiny
from faceid_nb.embeddings.appearance import embed_pictures
from faceid_nb.evaluation.identity import gallery_centre
from faceid_nb.evaluation.statistics import bootstrap_mean
from faceid_nb.inference.generate import Sampling, generate
from faceid_nb.world.recognition import with_lookalikes
from faceid_nb.world.scenes import draw_pose, draw_scene, random_scenes
from faceid_nb.world.shipped import tiny_branch

Embed = Callable[[np.ndarray], np.ndarray]             # Pictures (F, H, W, 3) uint8 -> unit rows, one for each face found
Draw = Callable[[np.ndarray, np.ndarray, int], np.ndarray]  # Photos of a person, pose clip, seed -> clip (F, H, W, 3) uint8


@dataclass(frozen=True)
class Pairs:
    "Describe the pairs to draw; the seed is far from every training seed"
    pairs:int = 50
    near:float = 1.5
    far:float = 4.
    photos:int = 4    # Of each person for the identity, and as many others for the judge
    frames:int = 5    # Of a clip, 4k+1
    seed:int = 9_100_001


def pictures(drawn):
    "Convert drawn frames (F, 3, H, W) in [0,1] to (F, H, W, 3) uint8"
    return (drawn.clamp(0, 1)*255).round().byte().movedim(1, -1).numpy()


def untuned(
    sampling:Sampling,
)->Draw:
    "Generate with the shipped model and the shipped face branch, as before any tuning"
    model, finder, encoders = open_model(tiny()), face_finder(tiny()), list(identity_encoders(tiny()).values())
    embed = partial(embed_pictures, finder, encoders)
    adapters = {'face': load_branch(tiny_branch(), model.hosts[0])}
    def draw(photos, pose, seed):
        identity = torch.from_numpy(gallery_centre(embed(photos)))
        words = 'a video of a person dancing, medium shot'
        return generate(model, pose, words, replace(sampling, seed=seed), adapters, identity)
    return draw


def judge_pair(
    draw:Draw,
    embed:Embed,         # The judge
    people:torch.Tensor, # Identity vectors of the world (2, ID_SIZE)
    plan:Pairs,
    seed:int,            # Of the pair
)->dict:                 # distance; right and margin of both clips
    "Generate both people of a pair and judge each clip"
    generator = torch.Generator().manual_seed(seed)
    size, shots = tiny().size, ('close up', 'medium shot')
    albums = [pictures(draw_scene(random_scenes(one.expand(2*plan.photos, -1), generator, 1, shots), size)[0]) for one in people]
    centres = np.stack([gallery_centre(embed(album[plan.photos:])) for album in albums])
    pose = pictures(draw_pose(random_scenes(people[:1], generator, plan.frames, ('medium shot',)), size))
    margins = []
    for own, album in enumerate(albums):
        rows = embed(draw(album[:plan.photos], pose, seed))
        cosines = rows.mean(0) @ centres.T if len(rows) else None
        margins.append(None if cosines is None else float(cosines[own] - cosines[1 - own]))
    right = [margin is not None and margin > 0 for margin in margins]
    return {'distance': float((people[0] - people[1]).norm()), 'right': right, 'margin': margins}


def look_alikes(
    plan:Pairs = Pairs(),
    draw:Draw|None = None,    # None: the shipped model, untuned
    embed:Embed|None = None,  # The judge; None: the shipped judge
)->dict:                      # right, clips, share, low, high, both, by_distance
    "Count how many clips of look-alikes are nearer to their own photos"
    draw = draw or untuned(tiny().sampling)
    embed = embed or partial(embed_pictures, face_finder(tiny()), [open_judge_of(tiny())])
    people = with_lookalikes(2*plan.pairs, torch.Generator().manual_seed(plan.seed), plan.near, plan.far)
    pairs = people.view(plan.pairs, 2, -1)
    rows = [judge_pair(draw, embed, pair, plan, plan.seed + 1 + i) for i, pair in enumerate(tqdm(pairs, desc='pairs'))]
    right = np.array([row['right'] for row in rows], float)  # (pairs, 2)
    low, high = bootstrap_mean(list(right), .95, 4000, 0)
    order = np.argsort([row['distance'] for row in rows])
    thirds = [part for part in np.array_split(order, 3) if len(part)]
    return {
        'right': int(right.sum()),
        'clips': right.size,
        'share': float(right.mean()),
        'low': low,
        'high': high,
        'both': int(right.all(1).sum()),
        'pairs': plan.pairs,
        'by_distance': [{'from': rows[part[0]]['distance'], 'to': rows[part[-1]]['distance'], 'share': float(right[part].mean())}
                        for part in thirds],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in vars(Pairs()).items():
        parser.add_argument(f'--{name}', type=type(default), default=default)
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    words = vars(parser.parse_args())
    as_json = words.pop('json')
    found = look_alikes(Pairs(**words))
    if as_json:
        print(json.dumps(found, indent=1))
        return
    interval = '' if found['low'] is None else f', 95 % interval by pair {found["low"]:.0%} to {found["high"]:.0%}'
    print(f'{found["right"]} of {found["clips"]} clips are nearer to their own photos ({found["share"]:.0%}{interval})')
    print(f'{found["both"]} of {found["pairs"]} pairs are told apart in both clips')
    for part in found['by_distance']:
        print(f'distance {part["from"]:.1f} to {part["to"]:.1f}: {part["share"]:.0%}')


if __name__ == '__main__':
    main()
