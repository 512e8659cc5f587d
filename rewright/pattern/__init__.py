"""The pattern language and the matcher: what to look for, by roles, and where it was found."""
