"""What a robot does with bundles: pull, verify, self-test, activate, roll back, and clean up.

<root>/keys/*.pem          signers that are trusted
<root>/objects/<sha256>    files, each once; <sha256>.part is a download to be gone on with
<root>/bundles/<id>/       a bundle, made of links to objects; id is the start of its manifest's sha256
<root>/records/<id>.json   where it came from, and how far it got: pulled, verified, tested
<root>/slots.json          which bundle is active and which was before: one file, so that a robot that
                           loses power has the old pair or the new one
<root>/engines/             those that this device built itself, for bundles whose own do not fit it
<root>/*.lock               one process at a time changes files, and one which bundle is active
"""
