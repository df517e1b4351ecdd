"""aefcli"""
