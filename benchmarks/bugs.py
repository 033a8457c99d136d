"""The bugs that `mutations.py` plants: what a tired person could have written.

They are grouped by file, so that an entry is quickly mended when its file changes."""
from dataclasses import dataclass

KNOWN = (  # These once survived the tests of their module; none may again
    'face_scale_twice', 'face_scale_squared_in_a_clip', 'identity_in_the_unconditional_pass', 'mask_of_zeros',
    'control_channels_exchanged', 'velocity_reversed', 'near_duplicates_parted', 'notebooks_not_forgotten',
    'checkpoint_hash_unchecked', 'face_dropout_ignored', 'face_dropout_not_asked_for', 'one_seed_for_all_clips',
    'shift_ignored_by_the_loss', 'shift_ignored_by_the_run')


@dataclass(frozen=True)
class Bug:
    "One wrong line"
    name:str                # How the table calls it
    file:str                # Module below faceid_nb
    old:str                 # Text that stands there exactly once
    new:str                 # What the bug makes of it
    tests:tuple[str, ...]   # Test files of that area, the quickest first


def bugs(
    file:str,                       # Module below faceid_nb
    tests:tuple[str, ...],          # Test files of that area
    *rows:tuple[str, str, str],     # Name, text, what the bug makes of it
)->list[Bug]:
    "Make the bugs of one file"
    return [Bug(name, file, old, new, tests) for name, old, new in rows]


FILES = ('test_laws_data', 'test_training')
MEDIA = ('test_laws_data', 'test_laws_model')
FLOW = ('test_laws_model', 'test_laws_training')
READING = ('test_laws_data', 'test_reading')
CHOOSING = ('test_laws_data', 'test_curation', 'test_choosing')
CROPPING = ('test_laws_data', 'test_cropping', 'test_curation')
FINDING = ('test_laws_data', 'test_finding')
ADAPTERS = ('test_laws_model', 'test_adapters')
TRAINING = ('test_laws_training', 'test_training')
INFERENCE = ('test_laws_model', 'test_inference')
KNOBS = ('test_knobs',)
EVALUATION = ('test_laws_results', 'test_evaluation')
RUNS = ('test_laws_runs',)
PRIVACY = ('test_privacy', 'test_laws_runs')

BUGS = (
    *bugs('core/files.py', FILES,
        ('file_written_in_place', 'os.replace(aside, path)', 'shutil.copyfile(aside, path)'),
        ('half_a_file_left', 'aside.unlink(missing_ok=True)', 'pass'),
        ('hash_of_the_first_megabyte', "for block in iter(lambda: f.read(1<<20), b''):\n            digest.update(block)",
         'digest.update(f.read(1<<20))'),
        ('hash_depends_on_order', 'json.dumps(obj, sort_keys=True, default=plain)', 'json.dumps(obj, default=plain)'),
        ('not_a_number_is_written', 'ensure_ascii=False, allow_nan=False)', 'ensure_ascii=False)'),
        ('space_is_never_short', 'if free < n_bytes:', 'if free < 0:')),

    *bugs('core/media.py', MEDIA,
        ('orientation_dropped', 'image = ImageOps.exif_transpose(image)', 'image = image.copy()'),
        ('grey_levels_of_256', '/ 255 * 2 - 1', '/ 256 * 2 - 1'),
        ('grey_levels_cut_off', 'levels.round().to(torch.uint8)', 'levels.to(torch.uint8)'),
        ('channels_reversed_out', '.permute(1, 2, 3, 0).numpy()', '.permute(1, 2, 3, 0).flip(-1).numpy()'),
        ('width_before_height', 'Image.fromarray(image).resize((size[1], size[0])',
         'Image.fromarray(image).resize((size[0], size[1])')),

    *bugs('core/fineness.py', ('test_odd_inputs', 'test_choosing'),
        ('worse_copy_stays', 'return bool(_preferred(a, b) > 0)', 'return bool(_preferred(a, b) < 0)')),

    *bugs('core/flow.py', FLOW,
        ('velocity_reversed', 'return noise - x0', 'return x0 - noise'),
        ('time_shifted_backwards', 'shift * t / (1 + (shift - 1) * t)', 't / (shift - (shift - 1) * t)'),
        ('times_uniform', 'torch.randn(n, generator=generator, device=generator.device).sigmoid()',
         'torch.rand(n, generator=generator, device=generator.device)'),
        ('data_guessed_at_the_wrong_time', 'return x_t - _wide(t, x_t) * v', 'return x_t - v')),

    *bugs('curation/photos.py', READING,
        ('photo_not_turned', 'if way in TURNS:', 'if way == 3:'),
        ('transparent_is_black', "seen.size, 'white')", "seen.size, 'black')")),

    *bugs('curation/folder.py', READING,
        ('links_are_followed', 'if stat.S_ISLNK(status.st_mode):', 'if False:')),

    *bugs('curation/select.py', CHOOSING,
        ('blurry_stays', 'if sharp < config.min_sharpness:', 'if sharp < 0:'),
        ('blurry_before_distant', 'if side < config.min_face:',
         'if side < config.min_face and sharp >= config.min_sharpness:'),
        ('stranger_stays', 'if cosines[best] < config.same_person:', 'if cosines[best] < -1:'),
        ('company_stays', 'if anywhere >= config.rival_area:', 'if anywhere > 10:'),
        ('covered_stays', 'covered = min(ratio, 1/max(ratio, 1e-6)) < config.min_mouth', 'covered = ratio < 0'),
        ('copies_stay', 'apart <= config.duplicate_bits', 'apart < 0'),
        ('reference_ignored', '    if reference is not None:', '    if reference is not None and len(groups) == 1:'),
        ('copies_vote', '[len(m) for m in moments]', '[len(g) for g in groups]')),

    *bugs('curation/crop.py', CROPPING,
        ('window_leaves_the_photo', 'min(max(x - width/2, 0), size[1] - width)', 'x - width/2'),
        ('face_box_not_moved', '((box - np.array(window[:2]*2))*scale)', '(box*scale)'),
        ('others_in_the_window', 'and y1 > box[1]: return False', 'and y1 > box[1]: continue'),
        ('caption_tells_the_face', 'words = remove_face_phrases(attributes, config.never)[0]', 'words = attributes')),

    *bugs('curation/manifest.py', CROPPING,
        ('near_duplicates_parted', 'split.heldout, split.reference, leader)', 'split.heldout, split.reference)'),
        ('changed_photo_taken', 'if photo.sha256 != features.sha256:', 'if not photo.sha256:'),
        ('hand_ignored', 'if not keep:', 'if keep is None:'),
        ('old_crops_left', 'for name in before - set(names):', 'for name in ():')),

    *bugs('curation/faces.py', FINDING,
        ('embedding_not_normalised', 'return (vector/length).astype(np.float32)', 'return vector.astype(np.float32)'),
        ('colours_of_the_chip_reversed', 'np.ascontiguousarray(face[..., ::-1])', 'np.ascontiguousarray(face)'),
        ('smallest_face_first', 'return sorted(known, key=lambda f: -f.area)', 'return sorted(known, key=lambda f: f.area)')),

    *bugs('curation/cache.py', FINDING,
        ('looks_of_other_models', "'pack': faces.sha256, ", '')),

    *bugs('embeddings/encoders.py', ('test_laws_data',),
        ('changed_photo_embedded', 'if photo.sha256 != sha256:', 'if not photo.sha256:')),

    *bugs('embeddings/identity.py', ('test_laws_data',),
        ('softmax_is_the_mean', 'unit(softmax_weights(embeddings) @ embeddings)', 'unit(embeddings.mean(0))'),
        ('mean_not_normalised', "if mode == 'mean': return unit(embeddings.mean(0))",
         "if mode == 'mean': return embeddings.mean(0)")),

    *bugs('embeddings/identity.py', ('test_blend',),
        ('photo_agrees_with_itself', 'others = embeddings.sum(0) - embeddings', 'others = embeddings.sum(0) + 0*embeddings'),
        ('outliers_not_named', 'if below[i] >= limit]', 'if below[i] >= 100*limit]'),
        ('mode_forgotten', 'made, page.mode)', "made, 'mean')")),

    *bugs('embeddings/blend.py', ('test_blend',),
        ('shares_not_divided', 'return weights/weights.sum()', 'return weights'),
        ('slerp_is_a_line', 'near = angle < PARALLEL', 'near = True'),
        ('opposite_people_walked', 'if angle > np.pi - ANTIPODAL:', 'if angle > 2*np.pi:'),
        ('encoders_not_compared', 'if one.encoder.get(file) != other.encoder.get(file)]', 'if False]'),
        ('name_taken_again', 'if os.path.lexists(folder): raise', 'if not folder.name: raise')),

    *bugs('models/wan_vace.py', ('test_blend',),
        ('frames_exchange_tokens', 'tokens = tokens.unflatten(1, (self.frames, -1))', 'tokens = tokens.unflatten(1, (self.frames, -1)).flip(1)'),
        ('frames_not_counted', 'if self.frames not in (1, wanted):', 'if wanted < 1:')),

    *bugs('inference/sampler.py', ('test_blend',),
        ('windows_keep_the_whole_walk', "parts['id_embed'] = identity[:, window]", "parts['id_embed'] = identity")),

    *bugs('models/wan_vace.py', (*FLOW, 'test_seams'),
        ('latents_not_normalised', '((raw.float() - mean) * per_std)', 'raw.float()'),
        ('mask_of_zeros', 'mask = torch.ones(b, s*s', 'mask = torch.zeros(b, s*s'),
        ('control_channels_exchanged', '[inactive, reactive, mask]', '[reactive, inactive, mask]'),
        ('mask_before_the_pose', '[inactive, reactive, mask]', '[mask, inactive, reactive]'),
        ('padding_is_the_last_word', 'return args[0][:, :spoken + 1],', 'return args[0][:, :spoken],'),
        ('last_word_is_padding', 'n = int(spoken.max()) + 1 if', 'n = int(spoken.max()) if'),
        ('noise_and_data_exchanged', 'timestep=(1000*t).float()', 'timestep=(1000*(1 - t)).float()'),
        ('conditioning_scale_ignored', 'scale = None if control_scale == 1 else', 'scale = None if control_scale is not None else'),
        ('unconditional_pass_not_heard', "self._call == 'uncond'", 'False')),

    *bugs('adapters/adapter.py', (*ADAPTERS, 'test_seams'),
        ('adapters_off_stay_on', 'adapter.scale = strengths.get(name, 0.)', 'adapter.scale = strengths.get(name, 1.)'),
        ('conditions_stay', 'adapter.set_conditions({})', 'pass'),
        ('weights_in_the_wrong_layer', 'weight.copy_(state[name])',
         "weight.copy_(state[name.replace('blocks.1.', 'blocks.0.')])")),

    *bugs('inference/sampler.py', (*INFERENCE, 'test_seams'),
        ('guidance_the_wrong_way', 'combined + guide.weight*(answer - before)', 'combined + guide.weight*(before - answer)'),
        ('strengths_never_change', 'now = dict(strengths(step, expert)) if strengths', 'now = dict(full) if strengths'),
        ('windows_added_up', 'return total/count.to(total.dtype).view(-1, 1, 1)', 'return total')),

    *bugs('adapters/branch.py', ADAPTERS,
        ('face_scale_twice', 'self.scale * self.up(', 'self.scale**2 * self.up('),
        ('identity_in_the_unconditional_pass', 'null if absent or unconditional else', 'null if absent else'),
        ('branch_speaks_at_the_start', 'nn.init.zeros_(self.up.weight)', 'nn.init.normal_(self.up.weight, std=.02)'),
        ('detach_leaves_the_sites', 'site.detach()', 'pass')),

    *bugs('adapters/mapper.py', ADAPTERS,
        ('nobody_has_a_face', 'tokens * id_embed.any(-1)[..., None, None]', 'tokens')),

    *bugs('adapters/lora.py', ADAPTERS,
        ('lora_scale_ignored', 'layer.set_scale(ADAPTER, scale)', 'layer.set_scale(ADAPTER, 1)'),
        ('lora_alpha_not_read', 'lora_alpha=header.lora_alpha', 'lora_alpha=header.r')),

    *bugs('adapters/pretrained.py', ADAPTERS,
        ('nobody_is_never_drawn', '>= null_share', '>= 0'),
        ('start_ignored', 'return load_branch(start, host)',
         'return attach_face_branch(host, config, generator)')),

    *bugs('training/data.py', TRAINING,
        ('face_dropout_ignored', ' * ~faceless[:, None]', ''),
        ('word_dropout_ignored', "cache.null_prompt_embeds if empty else sample.conditions['prompt_embeds']", "sample.conditions['prompt_embeds']"),
        ('held_out_photos_trained_on', 'if photo.split == split]', 'if photo.split]'),
        ('chance_without_the_step', "f'{seed}:{step}'", "f'{seed}'"),
        ('old_cache_taken', 'if cache.key == key: return cache', 'return cache'),
        ('mask_turned_over', 'covered(y0, y1, size[0], grid[0])[:, None] * covered(x0, x1, size[1], grid[1])',
         'covered(x0, x1, size[0], grid[0])[:, None] * covered(y0, y1, size[1], grid[1])')),

    *bugs('training/losses.py', TRAINING,
        ('face_weight_ignored', 'w = 1 + face_weight*mask', 'w = torch.ones_like(mask)'),
        ('face_weight_not_balanced', 'return w / w.mean((1, 2, 3, 4), keepdim=True)', 'return w'),
        ('shift_ignored_by_the_loss', 'sample_time(len(noise), generator, shift, device)',
         'sample_time(len(noise), generator, 1., device)')),

    *bugs('training/checkpoint.py', TRAINING,
        ('checkpoint_hash_unchecked', 'if path.is_file() and file_sha256(path) == ', 'if path.is_file() and 0 != '),
        ('chance_not_restored', "torch.set_rng_state(tensors['rng.cpu'])", 'pass'),
        ('adam_forgotten', "{'state': memory, ", "{'state': {}, "),
        ('average_forgotten', "state.ema[key].copy_(tensors[f'ema.{key}'])", 'pass'),
        ('average_of_one_speed', 'return min(decay, (1 + n)/(10 + n))', 'return decay'),
        ('one_checkpoint_kept', '[newest, *before[:keep - 1]]', '[newest]')),

    *bugs('training/finetune.py', (*TRAINING, 'test_processes'),
        ('face_dropout_not_asked_for', 'config.text_dropout, config.id_dropout)', 'config.text_dropout)'),
        ('processes_take_the_same_part', 'slice(accelerator.process_index*size, (accelerator.process_index + 1)*size)',
         'slice(0, size)')),

    *bugs('training/loop.py', TRAINING,
        ('schedule_one_step_ahead', 'learning_rate(state.step, config.total', 'learning_rate(state.step + 1, config.total'),
        ('gradient_not_clipped', 'clip_grad_norm_(moving, config.clip)', 'clip_grad_norm_(moving, 1e9)'),
        ('average_not_used', 'state.apply_ema(list(state.params))', 'pass'),
        ('stage_b_trains_the_branch', 'weight.requires_grad_(name in rates)', 'weight.requires_grad_(True)')),

    *bugs('inference/generate.py', INFERENCE,
        ('seed_ignored', 'manual_seed(sampling.seed)', 'manual_seed(0)'),
        ('one_seed_for_all_clips', 'seed=clip_seed(sampling.seed, name))', 'seed=sampling.seed)'),
        ('unconditional_pass_has_the_person', 'None if who is None else torch.zeros_like(who)', 'who'),
        ('negative_prompt_ignored', 'model.encode_text(sampling.negative_prompt)', "model.encode_text('')"),
        ('pose_backwards', 'to_tensor(pose).to(model.device)', 'to_tensor(pose[::-1].copy()).to(model.device)'),
        ('face_scale_squared_in_a_clip', "{name: face if name == 'face'", "{name: face**2 if name == 'face'"),
        ('every_adapter_is_on', 'now = sampling.strengths(on, step, expert)',
         'now = sampling.strengths(tuple(adapters), step, expert)')),

    *bugs('inference/generate.py', KNOBS,
        ('schedule_of_the_first_step', 'return schedule[step] if', 'return schedule[0] if'),
        ('second_expert_ignored', 'first if expert == 0 or second is None else second', 'first'),
        ('schedule_of_any_length', 'if len(value) != self.steps:', 'if len(value) > 1000:'),
        ('face_guidance_ignored', 'if both is None or not identity:', 'if True:'),
        ('prompt_pass_has_the_person', "'prompt': (text.positive, null)", "'prompt': (text.positive, who)"),
        ('calls_not_saved', "return passes[1:] if prompt == 1 else passes", 'return passes'),
        ('branch_off_without_a_pose', "now['control'] or 1.", "now['control']"),
        ('preview_starts_the_schedule_anew', 'int((step + .5)*sampling.steps/steps)', 'step')),

    *bugs('inference/pose.py', INFERENCE,
        ('dance_cut_short', 'np.linspace(0, len(frames) - 1, num_frames)',
         'np.linspace(0, len(frames)//2, num_frames)')),

    *bugs('evaluation/statistics.py', EVALUATION,
        ('faceless_frames_left_out', 'values = np.sort(every.cosine.astype(np.float64))',
         'values = np.sort(every.cosine[every.found].astype(np.float64))'),
        ('interval_too_narrow', 'np.quantile(means, [tail, 1 - tail])', 'np.quantile(means, [.025, .975])'),
        ('frames_drawn_not_clips', 'return bootstrap_mean([clip.cosine for clip in clips]',
         'return bootstrap_mean([frame for clip in clips for frame in np.split(clip.cosine, len(clip.cosine))]'),
        ('gain_reversed', 'after[name].cosine.astype(np.float64) - before[name].cosine',
         'before[name].cosine.astype(np.float64) - after[name].cosine'),
        ('road_from_below_zero', 'floor = max(impostor, 0.)', 'floor = impostor')),

    *bugs('evaluation/identity.py', EVALUATION,
        ('photo_judges_itself', 'np.delete(gallery, i, axis=0) for i', 'gallery for i')),

    *bugs('evaluation/motion.py', EVALUATION,
        ('steady_with_itself', 'float(a.embedding @ b.embedding)', 'float(a.embedding @ a.embedding)'),
        ('movement_between_far_frames', 'np.diff(centres, axis=0)', '(centres[1:] - centres[0])'),
        ('lost_frames_not_missed', 'float((known & ~seen).sum() / known.sum())',
         'float((known & seen).sum() / known.sum())')),

    *bugs('app/phases.py', RUNS,
        ('curation_forgets_the_hand', 'wanted,\n            hand,\n', 'wanted,\n'),
        ('curation_forgets_the_words', '            photo_words(photos),\n', ''),
        ('training_forgets_the_lora', 'recipe.mapper, recipe.lora, ', 'recipe.mapper, '),
        ('training_forgets_the_models', 'recipe.model.dtype, model_hashes(recipe)]', 'recipe.model.dtype]'),
        ('shift_ignored_by_the_run', 'training.config(recipe.flow_shift,', 'training.config(3.,'),
        ('seed_of_the_run_ignored', 'recipe.training.config(recipe.flow_shift, recipe.seed)', 'recipe.training.config(recipe.flow_shift, 0)'),
        ('clips_forget_the_sampling', '[before.key, recipe.sampling, recipe.seed, asked]', '[before.key, recipe.seed, asked]')),

    *bugs('app/runner.py', RUNS,
        ('leftovers_of_a_kill_ignored', "unsettled = inside(folder, f'{name}{PARTIAL}').exists()", 'unsettled = False'),
        ('choices_ignored', 'keys | (overrides or {})', 'keys'),
        ('strength_ignored', 'with_face_scale(recipe.sampling, face_scale)', 'recipe.sampling')),

    *bugs('embeddings/work.py', RUNS,
        ('gallery_of_training_photos', "judged_by = manifest.kept('heldout')",
         "judged_by = manifest.kept('train')"),
        ('gallery_of_all_photos', "judged_by = manifest.kept('heldout')",
         'judged_by = manifest.kept()')),

    *bugs('app/store.py', RUNS,
        ('results_not_checked', 'file_sha256(folder/name) == sha', '(folder/name).stat().st_size >= 0'),
        ('results_of_another_question', 'if step is None or step.key != key: return None',
         'if step is None: return None')),

    *bugs('app/verbs.py', ('test_laws_results',),
        ('mean_of_the_best', 'sum(column)/len(column)', 'max(column)')),

    *bugs('app/survey.py', PRIVACY,
        ('notebooks_not_forgotten', r"r'|notebooks/(\.ipynb_checkpoints/)?\d\d_[^/]+\.ipynb'", "r''")),

    *bugs('app/erasure.py', PRIVACY,
        ('copies_not_forgotten', 'copies | shas', 'shas'),
        ('index_lines_not_forgotten', 'if not _is_of(_row(line), known.person, known.photos)]', ']')),
)
