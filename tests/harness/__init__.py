"""What the end-to-end tests are made of: a server under test, and clients that are not ours.

Nothing here uses code of the server: the clients speak the protocol as docs/protocol.md has it.
"""
