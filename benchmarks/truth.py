"""How well the likeness of the recogniser and of the judge follows the true difference between two people.

    python benchmarks/truth.py --people 24 [--json]

Each person is changed by growing distances of identity and filmed; the likeness of a clip is the mean over its
frames, against held-out photos, as in a run. Printed are Spearman's rank correlation of the distance with
1 - likeness, with an interval by person, for each network.
"""
import argparse
import json

import numpy as np
import torch
from scipy.stats import spearmanr

from faceid_nb.curation.packs import open_faces
from faceid_nb.embeddings.appearance import open_appearance, open_judge, pack_encoder
from faceid_nb.evaluation.identity import gallery_centre
from faceid_nb.world.people import lookalike, random_people
from faceid_nb.world.scenes import draw_scene, random_scenes
from faceid_nb.world.shipped import tiny_appearance_path, tiny_judge_path, tiny_pack

DISTANCES = (0., .5, 1., 1.5, 2., 3., 4., 5., 6., 7., 8.5)  # Of identities; two random people are about 8.5 apart


def embedded(encoder, frames, points):
    return np.stack([encoder.embed(*pair) for pair in zip(frames, points, strict=True)])


def pictures(who, seed, frames, shots, size):
    scene = random_scenes(who, torch.Generator().manual_seed(seed), frames, shots)
    drawn, truth = draw_scene(scene, size)
    return (drawn.permute(0, 2, 3, 1)*255).round().byte().numpy(), truth['keypoints'].numpy()


def measure(people, frames):
    "Likeness of every clip: network -> (people, distances)"
    encoders = {'recogniser': pack_encoder(open_faces(*tiny_pack())), 'judge': open_judge(tiny_judge_path()),
                'appearance': open_appearance(tiny_appearance_path())}
    g = torch.Generator().manual_seed(9_300_001)
    found = {name: np.zeros((people, len(DISTANCES))) for name in encoders}
    for i in range(people):
        who = random_people(1, g)
        photos = pictures(who.expand(4, -1), 1000*i, 1, ('medium shot', 'close up'), (288, 192))
        known = {name: gallery_centre(embedded(one, *photos)) for name, one in encoders.items()}
        for k, distance in enumerate(DISTANCES):
            other = lookalike(who, distance, g) if distance else who
            clip = pictures(other, 1000*i + 7 + k, frames, ('full body', 'medium shot'), (192, 128))
            for name, one in encoders.items():
                found[name][i, k] = (embedded(one, *clip) @ known[name]).mean()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--people', type=int, default=24)
    parser.add_argument('--frames', type=int, default=17)
    parser.add_argument('--json', action='store_true')
    options = parser.parse_args()
    found = measure(options.people, options.frames)
    distances, draws = np.tile(DISTANCES, (options.people, 1)), np.random.default_rng(0)
    rows = {}
    for name, likeness in found.items():
        def rank(who): return float(spearmanr(distances[who].ravel(), 1 - likeness[who].ravel()).statistic)
        again = [rank(draws.integers(0, options.people, options.people)) for _ in range(400)]
        rows[name] = {'spearman': rank(slice(None)), 'low': float(np.quantile(again, .025)),
                      'high': float(np.quantile(again, .975)), 'likeness': likeness.mean(0).round(3).tolist()}
    if options.json: return print(json.dumps({'people': options.people, 'distances': DISTANCES, 'networks': rows}))
    print(f'{options.people} people, clips of {options.frames} frames at {len(DISTANCES)} distances')
    for name, row in rows.items(): print(f'{name:12} {row["spearman"]:.3f} ({row["low"]:.3f} to {row["high"]:.3f})')


if __name__ == '__main__': main()
