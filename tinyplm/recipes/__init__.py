"""One function per run worth naming: parts put together."""
