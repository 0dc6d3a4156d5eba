"""Episodes to disk and back: `Recorder` writes captures, `read_episode` reads them.

See `remote_env.record.hdf5` for the file's layout and `remote_env.record.part` for what a crash leaves
behind.
"""

from remote_env.record.aloha import observe_aloha
from remote_env.record.episode import Episode, EpisodeInfo
from remote_env.record.inspection import inspect_capture
from remote_env.record.metasim import read_metasim, to_metasim
from remote_env.record.recorder import Observe, Recorder, Seen, observe
from remote_env.record.recovery import read_episode, recover_part, repair_part

__all__ = [
    "Episode",
    "EpisodeInfo",
    "Observe",
    "Recorder",
    "Seen",
    "inspect_capture",
    "observe",
    "observe_aloha",
    "read_episode",
    "read_metasim",
    "recover_part",
    "repair_part",
    "to_metasim",
]
