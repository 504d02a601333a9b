"""Count the words that were private to this project, in two commits.

    python docs/tables/word_counts.py [BEFORE NOW]

prints the table of docs/glossary.md: whole words, upper or lower case, in the package and its recipes, and in
the documentation.
"""

import subprocess
import sys

CODE = ("m2v_finetune/*.py", "recipes/*.py")
DOCS = ("docs/*.md", ":!docs/glossary.md", "README.md", "CONTRIBUTING.md")
# Word, pattern, and what stays.
WORDS = (
    ("judge", "judge[sd]?|judging", ""),
    ("say", "say|says|said|saying", "licences of data, in files that are not code"),
    ("hear", "hear[sd]?|heard|hearing", "sound for people: clicks, the page of `m2v demo`"),
    ("listen", "listen[s]?|listened", "the page of `m2v demo`"),
    ("tell", "tell|tells|told|untold", "`file.tell()`, Optuna's `study.tell()`"),
    ("ask", "ask|asks|asked", "requests of people and of servers"),
    ("learns", "learns", "a person, or a student, as the subject"),
    (
        "what the, what is",
        "what (the|is|a|it|they)",
        "questions, and clauses without a noun of their own",
    ),
    ("frozen prefix, stored states", "FrozenPrefix|StoredStates|StoredWindows|StateCache", ""),
    ("drawn versions", "drawn_versions|unique_draws|DrawnWindows", ""),
    (
        "Moves, moved effects",
        "Moves|moved_effects|STILL",
        "`still`, the adverb, and `moves`, the verb",
    ),
    ("pieces", "pieces", "pieces of music"),
    ("go on", "go on|goes on|going on", "streams and notes that continue"),
    (
        "begin",
        "begin|begins|began|begun",
        "`begin` and `end` of tables in pages, beginnings of files",
    ),
    ("mend", "mend[s]?|mended", ""),
    ("card, for a GPU", "on_card|require_card|CardKernels|card_capability", ""),
    ("deviation", "deviation[s]?", "standard deviation; deviations of tempo"),
    ("width", "width", "of pictures and characters"),
    ("truth", "truth", "the title of a paper"),
    ("answer", "answer[s]?", "replies of servers, and of people"),
    ("lie", "lie|lies|lay|lying", '"lay out", and a name of a song'),
    ("stand", "stand|stands|stood", '"stand-in", "stands for"'),
    ("bear", "bear|bears", ""),
    ("room, house", "room[s]?|house", "rooms as an effect on sound, house as a style of music"),
    ("first log", "first_log|first log", ""),
    ("ledger, DeathWatch", "_?Ledger|_?DeathWatch|DataWatch", ""),
    ("patiently", "_?patiently", ""),
    ("agree", "agree[sd]?|is_agreed", "numbers that agree"),
    ("at once", "at_once|at once", "batches that are computed at the same time"),
    ("rehearse", "rehears(e|al)", ""),
    ("StepClock", "StepClock|is_much", ""),
    ("hold, held", "hold|holds|held", "files that hold something; held-out data"),
    ("whole", "whole", "whole tracks and files"),
    ("twister", "_?is_twister|_demand", ""),
    ("take measures", "take_measures|check_measures", ""),
    ("bare backbone", "bare_backbone|new_backbone", ""),
    ("shown prediction", "shown_prediction", ""),
    ("portions", "portion[s]?", ""),
)


def count(commit: str, pattern: str, paths: tuple[str, ...]) -> int:
    """Return the number of matches in files of a commit."""
    command = ["git", "grep", "-o", "-i", "-w", "-h", "-E", pattern, commit, "--", *paths]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode > 1:  # 1 is no match
        raise SystemExit(found.stderr)
    return len(found.stdout.splitlines())


def main() -> None:
    """Print the table."""
    before, now = sys.argv[1:] or ("3cece43", "HEAD")
    lines = ["| word | pattern | before | now | what stays |", "|---|---|---|---|---|"]
    for word, pattern, reason in WORDS:
        found = [count(one, pattern, paths) for one in (before, now) for paths in (CODE, DOCS)]
        if any(found):
            shown = pattern.replace("|", r"\|")
            counts = "{} / {} | {} / {}".format(*found)
            lines.append(f"| {word} | `{shown}` | {counts} | {reason} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
