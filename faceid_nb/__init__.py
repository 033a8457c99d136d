"""Modules:

- `faceid_nb.adapters.branch`: After this chapter you can hang a face on an unmodified Wan-VACE, turn it up and down, take it off again, and prove that it did no harm.
- `faceid_nb.app.cli`: After reading you know what the `faceid` command promises when something is wrong, and how it ends.
- `faceid_nb.app.phases`: After reading you can learn a face from photos with three function calls, stop them anywhere, and find every choice and every hash in one folder.
- `faceid_nb.app.results`: After reading you can make a person dance, turn the clips into numbers, a page and a few lines of text, and know where each number comes from.
- `faceid_nb.app.store`: After reading you can stop a run at any moment, type the same command again, and get the same files to the last bit; and until then you keep the old ones.
- `faceid_nb.app.survey`: After reading you can say which runs lie in a folder, whom each is about, and which files they made.
- `faceid_nb.app.widgets`: After reading you can accept or reject photos with keys and clicks, and turn a face up and down with a slider, inside JupyterLab.
- `faceid_nb.core.errors`: After reading you can tell a user's mistake from a bug, and check any value from a user with one annotation.
- `faceid_nb.core.files`: After this you can write files that are never half written, and record which configuration and versions made them.
- `faceid_nb.core.folders`: After reading you can work in a folder that others use too, without leaving it and without losing their files.
- `faceid_nb.core.lock`: After reading you can let one process at a time work in a folder, without a lock that a crash leaves behind.
- `faceid_nb.core.media`: After this you can read and write photos, clips and notes, and convert them to a model's range and back without loss.
- `faceid_nb.core.plot`: After this you can plot faces, clips and curves with one line each, and all figures of the project share one style.
- `faceid_nb.core.stop`: After reading you can end long work on a signal without leaving anything half done or losing the signal.
- `faceid_nb.curation.cache`: Curate a folder again quickly: measure only new photos, and never use a measurement that is out of date.
- `faceid_nb.curation.crop`: Crop a photo around the subject to the shape that a video model needs, without other people, and caption it.
- `faceid_nb.curation.dataset_advice`: Find out what a set of photos lacks before training, which likeness to expect, and draw a map of all faces.
- `faceid_nb.curation.faces`: Find every face of a picture with its box, key points and identity vector, and measure how good it is.
- `faceid_nb.curation.manifest`: Curate a folder: verdicts, crops, captions, a contact sheet, and the one file that later phases read.
- `faceid_nb.curation.packs`: Open the networks that find and recognise faces from local files, and check their licence and integrity.
- `faceid_nb.curation.photos`: Turn a folder of arbitrary photos into decoded pictures, and name each file that cannot be decoded, with the reason.
- `faceid_nb.curation.scale`: Curate a hundred thousand photos, stop at any moment, and continue later with the same result.
- `faceid_nb.curation.select`: Decide who the folder is about, and for every photo whether it stays, with one reason and one number.
- `faceid_nb.embeddings.encoders`: Turn every kept photo into a vector that identifies the person, and see in one picture whether the photos agree.
- `faceid_nb.embeddings.identity`: Merge the vectors of many photos into one for the person, find photos that distort it, and keep it in a file.
- `faceid_nb.evaluation.identity`: After this chapter you can score the likeness of each frame of a clip to a person, between a floor and a ceiling.
- `faceid_nb.evaluation.motion`: After this chapter you can measure how well a clip follows the pose, how steady the face is, and how much it moves.
- `faceid_nb.evaluation.report`: After this chapter a run ends in one page that you can share: photos, pose clip, generated clips and likeness.
- `faceid_nb.evaluation.statistics`: After this chapter you can summarise thousands of frame scores in one row, with an interval for the mean.
- `faceid_nb.models.wan_folder`: After this chapter you can open a Wan-VACE model from a folder, know what is missing before anything is loaded, and read the sizes of a model without opening it.
- `faceid_nb.world.facepack`: After this you can train a face detector and a recogniser, test them on new people, and write them for insightface.
- `faceid_nb.world.figure`: After this you can paint a whole person in any pose, light and clothes, with the exact position of the face.
- `faceid_nb.world.people`: After this you can draw any number of people, and look-alikes of a person at exactly the distance that you choose.
- `faceid_nb.world.pretrain`: After this you can train the video models of the embedded world, in stages that resume after a kill at any moment.
- `faceid_nb.world.scenes`: After this you can film dances and take photos, good or spoiled in a known way, with the truth of every frame.
- `faceid_nb.world.tiny`: After this you can open the shipped models, build fresh ones, and say what each part does and how good it is."""

__version__ = "0.1.0"
