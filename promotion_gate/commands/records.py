"""Keys, and what the signed records say of a version: ``keygen``, ``verify`` and ``revoke``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promotion_gate.commands import Command, production, say
from promotion_gate.core.errors import ExitCode

if TYPE_CHECKING:
    from promotion_gate.vouching import Vouched

VERIFY_SCHEMA = "promotion-gate-verify/1"


def add(command: Command) -> None:
    """Declare the commands."""
    keygen = command("keygen", _keygen, "make a key pair to sign records with", registry=False)
    keygen.add_argument(
        "path",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="the private key; FILE.pub beside it is for others to trust (default: where it is looked for)",
    )

    verify = command("verify", _verify, "whether signed records vouch for a version, link by link")
    verify.add_argument("model", metavar="MODEL", help="a name for its production version, or name/7")
    verify.add_argument(
        "--trust", type=Path, metavar="D", help="trust the public keys in this folder alone (*.pub)"
    )
    verify.add_argument("--policy", type=Path, metavar="F", help="it must have been judged under this policy")
    verify.add_argument(
        "--alias", default="production", help="the alias that serving reads (default: production)"
    )
    verify.add_argument("--json", action="store_true", help="for programs")

    revoke = command("revoke", _revoke, "declare a version unfit for good")
    revoke.add_argument("version", metavar="NAME/VERSION")
    revoke.add_argument("--reason", required=True, metavar="TEXT", help="why; it goes into the history")
    revoke.add_argument(
        "--out",
        type=Path,
        metavar="F",
        help="write the signed revocation as well, NAME.revoked.json beside trusted keys holds everywhere",
    )
    revoke.add_argument(
        "--alias", default="production", help="the alias that serving reads (default: production)"
    )


def _keygen(args: argparse.Namespace) -> int:
    from promotion_gate.core.keys import make_key_pair, signing_key_path, trusted_folder

    path = args.path or signing_key_path()
    key = make_key_pair(path)
    say(f"private key: {path}")
    say(f"public key:  {path.with_suffix('.pub')}, id {key.key_id}")
    if any((parent / ".git").exists() for parent in path.absolute().parents):
        say("note: the private key lies in a git repository; keep it out of every commit")
    say(f"others trust it once they have put the public key into {trusted_folder()}")
    return ExitCode.DONE


def _verify(args: argparse.Namespace) -> int:
    from promotion_gate.core.keys import load_trusted_keys
    from promotion_gate.core.policy import load_policy
    from promotion_gate.registry.mlflow import MlflowRegistry
    from promotion_gate.vouching import vouched_version

    trusted = load_trusted_keys(args.trust)
    policy_digest = "" if args.policy is None else load_policy(args.policy).digest
    vouched = vouched_version(
        MlflowRegistry(args.tracking_uri, args.registry_uri),
        args.model,
        production(args.alias),
        trusted,
        policy_digest=policy_digest,
    )
    if args.json:
        print(_as_json(vouched))
    else:
        for line in verify_lines(vouched):
            say(line)
    return ExitCode.DONE if vouched.broken is None else ExitCode.REJECTED


def verify_lines(vouched: Vouched) -> list[str]:
    """The verdict of ``verify`` and every link, a line each."""
    lines = [f"ok {link.name}: {link.said}" for link in vouched.links]
    if vouched.broken is not None:
        return [*lines, f"BROKEN {vouched.broken}", f"{vouched.ref} is NOT verified"]
    return [*lines, f"{vouched.ref} is verified"]


def _as_json(vouched: Vouched) -> str:
    import json

    told: dict[str, Any] = {
        "schema": VERIFY_SCHEMA,
        "model": str(vouched.ref),
        "verified": vouched.broken is None,
        "digest": vouched.record.digest if vouched.broken is None and vouched.record else None,
        "links": [{"name": link.name, "said": link.said} for link in vouched.links],
        "broken": None if vouched.broken is None else str(vouched.broken),
    }
    return json.dumps(told, indent=2)


def _revoke(args: argparse.Namespace) -> int:
    from promotion_gate.core.types import ModelRef
    from promotion_gate.core.writing import require_writable, write_bytes
    from promotion_gate.operators import moved_message
    from promotion_gate.registry.mlflow import MlflowRegistry
    from promotion_gate.transition import revoke

    if args.out is not None:
        require_writable(args.out)
    recorded = revoke(
        MlflowRegistry(args.tracking_uri, args.registry_uri),
        ModelRef.parse(args.version),
        reason=args.reason,
        production=production(args.alias),
    )
    print(moved_message(recorded))
    if args.out is not None:
        write_bytes(args.out, recorded.envelope)
        say(f"wrote {args.out}")
    return ExitCode.DONE
