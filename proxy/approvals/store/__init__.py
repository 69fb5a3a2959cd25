"""Where questions, votes and grants are kept: one writer at a time, and nothing half-done after a crash.

`base` says what a store is, `tables` what it holds, `queries` is all the SQL there is; `sqlite` keeps it in one file,
`postgres` in a server that many hosts share.
"""
