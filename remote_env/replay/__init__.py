"""Replay: captured states in a local MuJoCo model; video, stills, contact sheet and fidelity out.

with Replayer("model.xml") as replayer:
replayer.set_state(state)
image = replayer.render()

replay(states, "model.xml").save_video("episode.mp4")
report = replay_episode("episode_000.hdf5", "model.xml", video="episode_000.mp4", images_dir="images")
"""

from remote_env.replay.episode import ReplayReport, replay_episode
from remote_env.replay.fidelity import Fidelity
from remote_env.replay.frames import View
from remote_env.replay.images import save_contact_sheet, save_still
from remote_env.replay.mapping import Mapping
from remote_env.replay.mirror import Mirror
from remote_env.replay.replayer import Frame, Model, Replayer, load_model
from remote_env.replay.show import Replay, replay
from remote_env.replay.video import save_video
from remote_env.replay.viewer import view

__all__ = [
    "Fidelity",
    "Frame",
    "Mapping",
    "Mirror",
    "Model",
    "Replay",
    "ReplayReport",
    "Replayer",
    "View",
    "load_model",
    "replay",
    "replay_episode",
    "save_contact_sheet",
    "save_still",
    "save_video",
    "view",
]
