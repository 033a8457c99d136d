"""The odd files of real folders: each is read as upright RGB or refused by one ValueError that names it."""

import os
import subprocess
import sys

import numpy as np
import pytest

from faceid_nb.core.media import read_image, read_video


def test_every_odd_picture_is_read_or_refused_by_name(assets):
    files = [p for p in sorted((assets/'photos'/'formats').iterdir()) if p.is_file()]
    assert len(files) > 30
    for path in files:
        try: image = read_image(path)
        except ValueError as e: assert path.name in str(e)
        else: assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def test_orientation_is_obeyed(assets):
    turned = read_image(assets/'photos'/'formats'/'hopper_orientation_6.webp').astype(float)
    upright = read_image(assets/'photos'/'formats'/'hopper.png').astype(float)
    assert np.abs(turned - upright).mean() < 12
    assert np.abs(np.rot90(turned) - upright).mean() > 30


def test_a_real_clip_is_read(assets):
    frames, fps = read_video(assets/'pose_video'/'liveportrait_d18_face.mp4')
    assert frames.dtype == np.uint8 and frames.shape[1:] == (480, 480, 3) and fps == pytest.approx(30, abs=.1)


def test_a_clip_that_is_not_one_is_named(assets, tmp_path):
    with pytest.raises(ValueError, match='hopper.jpg'): read_video(assets/'photos'/'formats'/'hopper.jpg')


@pytest.mark.skipif(os.name != 'posix', reason='interrupts by a timer')
@pytest.mark.parametrize('after', [.05, .2, .5])
def test_an_interrupted_encoder_says_and_leaves_nothing(tmp_path, after):
    "A stop inside ffmpeg's work: ffmpeg ends before its file is removed, so it cannot complain that the file is gone"
    script = f'''import os, psutil, signal, numpy as np
from faceid_nb.core.media import write_video
def stop(number, frame):
    raise KeyboardInterrupt
clip = np.random.default_rng(0).integers(0, 255, (60, 480, 640, 3), np.uint8)
signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, {after})
try:
    write_video({str(tmp_path/'clip.mp4')!r}, clip, 25)
except KeyboardInterrupt:
    pass
print(len(psutil.Process().children()), [name for name in os.listdir({str(tmp_path)!r}) if name != 'clip.mp4'])
'''
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == ('0 []\n', '', 0)
