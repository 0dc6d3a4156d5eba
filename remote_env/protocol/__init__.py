"""The wire, pure: frames, values, fixed layouts, the handshake. No socket, thread, process, file or clock.

`docs/protocol.md` is normative; each module names its section.
"""
