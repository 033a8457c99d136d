"""Modules:

- `faceid_nb.adapters.branch`: After this chapter you can hang a face on an unmodified Wan-VACE, turn it up and down, take it off again, and prove that it did no harm.
- `faceid_nb.app.phases`: After reading you can learn a face from photos with three function calls, stop them anywhere, and find every choice and every hash in one folder.
- `faceid_nb.app.results`: After reading you can make a person dance, turn the clips into numbers, a page and a few lines of text, and know where each number comes from.
- `faceid_nb.app.store`: After reading you can stop a run at any moment, type the same command again, and get the same files to the last bit; and until then you keep the old ones.
- `faceid_nb.app.survey`: After reading you can say which runs lie in a folder, whom each is about, and which files they made.
- `faceid_nb.app.widgets`: After reading you can accept or reject photos with keys and clicks, and turn a face up and down with a slider, inside JupyterLab.
- `faceid_nb.core.errors`: After reading you can tell a mistake of the user from a bug, and check any value that a user may give with one annotation.
- `faceid_nb.core.folders`: After reading you can work in a folder that other people use too: look through it without being led out of it, and never lose a file of theirs.
- `faceid_nb.core.media`: After this you can bring any photo, clip or note in, take pictures out as PNG and H.264, know a clip before you decode it, and cross into the model's range and back without losing a grey level.
- `faceid_nb.curation.cache`: Look at a folder a second time in no time: only files that are new are looked at, whatever they are called, and nothing is believed that no longer holds.
- `faceid_nb.curation.coach`: Say what a set of photos lacks before anybody trains on it, how like the person a result can become, and draw the map of all faces.
- `faceid_nb.curation.crop`: Cut the subject out of a photo in the shape that a video model wants, with everybody else outside, and say in words what the picture shows.
- `faceid_nb.curation.faces`: Find every face of a picture with its box, five key points and identity vector, and measure how sharp, how turned and how complete it is.
- `faceid_nb.curation.manifest`: Run the whole curation over a folder: verdicts, crops, captions, a contact sheet to look at, and one file that the rest of the workshop reads.
- `faceid_nb.curation.packs`: Open the networks that find and recognise faces, from files that lie on this machine, and know whose they are, what they may be used for and that they are whole.
- `faceid_nb.curation.photos`: Turn a folder of whatever people have into pictures that are certain to decode, or into a file name and the reason why not.
- `faceid_nb.curation.select`: Decide who the folder is about, and for every photo whether it stays, with one reason and one number.
- `faceid_nb.embeddings.encoders`: Turn every kept photo into a vector that says who is on it, and see in one picture whether the photos agree.
- `faceid_nb.embeddings.identity`: Merge the vectors of many photos into one that stands for the person, know which photos pulled it astray, and keep it in a file.
- `faceid_nb.evaluation.identity`: After this chapter you can say how much the person in a clip is the person you wanted: one number for every frame, a floor and a ceiling beside it, and no frame left out.
- `faceid_nb.evaluation.motion`: After this chapter you can tell a dance from a talking passport photo: how well the clip follows the pose, how steady the face stays, and how much it moves at all.
- `faceid_nb.evaluation.report`: After this chapter a run ends in one page that you can send to anybody: the photos, the dance, four clips side by side, and how much of the person is really there. One file, no network, readable on a phone.
- `faceid_nb.evaluation.statistics`: After this chapter you can turn thousands of frame scores into one honest row: mean, median, spread, the worst frames, the faceless share, and how far chance could have moved it.
- `faceid_nb.inference.generate`: After this chapter you can open a Wan-VACE model from a folder, let a person dance in it, turn each part of the method on and off, and get the same clip tomorrow.
- `faceid_nb.world.facepack`: After this you can train a face detector and a recogniser, test them on new people, and write them for insightface.
- `faceid_nb.world.figure`: After this you can paint a whole person in any pose, light and clothes, with the exact position of the face.
- `faceid_nb.world.people`: After this you can draw any number of people, and look-alikes of a person at exactly the distance that you choose.
- `faceid_nb.world.pretrain`: After this you can train the video models of the embedded world, in stages that resume after a kill at any moment.
- `faceid_nb.world.scenes`: After this you can film dances and take photos, good or spoiled in a known way, with the truth of every frame.
- `faceid_nb.world.tiny`: After this you can open the shipped models, build fresh ones, and say what each part does and how good it is."""

__version__ = "0.1.0"
