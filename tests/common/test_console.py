"""console.py: untrusted text on a terminal."""



from minigrpo.common.console import verbatim


def test_verbatim_text_keeps_its_spaces_stays_within_80_columns_and_commands_no_terminal():
    """Four spaces in front of each line, eight where one goes on: with them taken away and the pieces put together, every line
    is as it was, but for the escape character."""
    lines = ["  id INT, -- e.g. 1,  2", "", "x " * 60, "y" * 200, "\x1b[2J"]
    shown = verbatim("\n".join(lines))
    assert max(map(len, shown)) < 80
    text = "".join(line.replace(" " * 8, "", 1) if line.startswith(" " * 8) else "\n" + line[4:] for line in shown)
    assert text == "\n" + "\n".join(lines).replace("\x1b", "\ufffd")
