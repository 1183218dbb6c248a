"""What is known of each place where data enters: registered, pinned, from the mirror, checked by hash."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from promotion_gate.provenance.scan.address import is_private_host, is_remote, within
from promotion_gate.provenance.scan.entry import HOLE, UNTOLD, Answer, Entry, Known
from promotion_gate.provenance.scan.registered import Registered

UNREGISTERED = "unregistered-data"
FLOATING = "floating-data"
UNCHECKED = "unchecked-data"
REGISTERED = "registered-data"
UNREADABLE = "unreadable-file"
UNEXPLAINED = "unexplained-suppression"

RULES = {
    UNREGISTERED: "Data enters that is not vetted in the bill of materials.",
    FLOATING: "Registered data enters under a name or address whose content can change.",
    UNCHECKED: "Registered data enters without a check of its hash.",
    REGISTERED: "Registered data enters, pinned and checked by its hash.",
    UNREADABLE: "A source file cannot be read, so nobody can say what enters there.",
    UNEXPLAINED: "A suppression gives no reason.",
}
"""Every rule with what it says, in order of weight."""
FAILING = frozenset({UNREGISTERED, UNREADABLE, UNEXPLAINED})
"""The rules whose findings fail a scan, unless a baseline or a suppression takes them in."""


@dataclass(frozen=True, slots=True)
class ScanFinding:
    """One finding of a scan, judged.

    ``path`` is relative to the scanned folder, with slashes. ``registered_as`` names the data set of the
    bill of materials. ``fingerprint`` stays when lines move. ``allowed`` is the reason of an inline
    suppression, ``known`` that of the baseline; empty for neither. ``digest`` is the SHA-256 of a file that
    cannot be read.
    """

    rule: str
    path: str
    line: int
    column: int
    end_line: int
    message: str
    entry: Entry | None = None
    registered: Answer = UNTOLD
    registered_as: str = ""
    mirror: Answer = UNTOLD
    fingerprint: str = ""
    allowed: str = ""
    known: str = ""
    digest: str = ""

    @property
    def fails(self) -> bool:
        """Whether this finding by itself fails the scan."""
        return self.rule in FAILING and not self.allowed and not self.known


def judge(path: str, entry: Entry, registered: Registered, mirrors: Sequence[str] = ()) -> ScanFinding:
    """What is known of one entry, as a finding without its fingerprint."""
    found = registered.find(entry)
    if entry.kind == "verified load" and found is not None and not found.sha256:
        entry = replace(
            entry,
            pinned=Answer(Known.NO, "its entry has no SHA-256"),
            hashed=Answer(Known.NO, "its entry has no SHA-256"),
        )
    mirror = _mirror(entry, registered, mirrors)
    if found is None:
        answer = Answer(Known.NO)
        if not entry.dataset and not entry.url.strip(HOLE):
            answer = Answer(Known.NO, "what enters is only known at run time")
    elif not found.vetted:
        answer = Answer(Known.NO, f"{found.name} is in quarantine")
    else:
        answer = Answer(Known.YES, found.name)
    rule = UNREGISTERED
    if answer.known is Known.YES:
        rule = REGISTERED
        if entry.pinned.known is not Known.YES:
            rule = FLOATING
        elif entry.hashed.known is not Known.YES:
            rule = UNCHECKED
    return ScanFinding(
        rule, path, entry.line, entry.column, entry.end_line, _message(entry, answer, mirror), entry, answer,
        found.name if found else "", mirror,
    )  # fmt: skip


def _mirror(entry: Entry, registered: Registered, mirrors: Sequence[str]) -> Answer:
    if entry.kind == "verified load":
        return Answer(Known.UNKNOWN, "the verified load asks the bill of materials")
    if entry.url:
        if registered.is_mirror(entry.url) or any(within(entry.url, mirror) for mirror in mirrors):
            return Answer(Known.YES, "the mirror")
        if is_private_host(entry.url):
            return Answer(Known.NO, "a private host that is no mirror of the bill of materials")
        if is_remote(entry.url):
            return Answer(Known.NO, "an address that is no mirror of the bill of materials")
        return Answer(Known.UNKNOWN, "the address is only known at run time")
    if entry.family in ("dvc", "git-lfs", "ftplib", "google.cloud.storage", "azure"):
        return Answer(Known.UNKNOWN, "the remote is configured elsewhere")
    return Answer(Known.NO, f"the public net, by {entry.family}")


_TOLD = {
    "registered": ("registered as", "not registered", "registered or not"),
    "pinned": ("pinned by", "floating", "pinned or not"),
    "mirror": ("from", "not from the mirror", "from the mirror or not"),
    "hashed": ("hash-checked by", "no hash checked", "hash-checked or not"),
}


def _message(entry: Entry, registered: Answer, mirror: Answer) -> str:
    what = entry.dataset or entry.url or "a data set that is only known at run time"
    context = f" ({entry.context})" if entry.context else ""
    answers = {"registered": registered, "pinned": entry.pinned, "mirror": mirror, "hashed": entry.hashed}
    return f"{entry.loader} brings in {what}{context}: " + "; ".join(
        _told(*_TOLD[question], answer) for question, answer in answers.items()
    )


def _told(yes: str, no: str, open_question: str, answer: Answer) -> str:
    if answer.known is Known.YES:
        return f"{yes} {answer.why}"
    if answer.known is Known.NO:
        return f"{no} ({answer.why})" if answer.why else no
    return f"{open_question}: not to be told{f' ({answer.why})' if answer.why else ''}"


def fingerprinted(findings: Iterable[ScanFinding]) -> list[ScanFinding]:
    """Findings with fingerprints that survive moved lines.

    A fingerprint is a SHA-256 over the file's path, the loader, what it brings, how that is pinned and
    checked, and the how manieth of that kind it is in the file; so a second download of the same set is a
    new finding, and so is one whose version is let go. That of a file that cannot be read is over all of
    its bytes.
    """
    seen: Counter[str] = Counter()
    done = []
    for finding in sorted(findings, key=lambda f: (f.path, f.line, f.column, f.rule, f.message)):
        entry = finding.entry
        if entry is None:
            parts = [finding.path, finding.rule, finding.message, finding.digest]
        else:
            known = entry.url or entry.dataset
            told = known if known and HOLE not in known else f"{known} {entry.code}"
            parts = [finding.path, entry.loader, told, entry.pins, entry.pinned.known, entry.hashed.known]
        text = "\0".join(" ".join(part.split()) for part in parts)
        seen[text] += 1
        digest = hashlib.sha256(f"{text}\0{seen[text]}".encode("utf-8", "surrogatepass")).hexdigest()
        done.append(replace(finding, fingerprint=digest))
    return done
