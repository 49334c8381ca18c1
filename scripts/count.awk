# Reads what `cargo test` printed and sums it up: the counts of each suite, what failed and what did not run by name, and
# on the last line the counts of all. A suite that ended without a result (it crashed) counts as one failure.

function close_suite() {
    if (suite != "" && results == 0) {
        failures[++failed] = suite " (ended without a result)"
    }
}

/^ +Running / || /^ +Doc-tests / {
    close_suite()
    suite = $0
    sub(/^ +(Running )?(unittests )?/, "", suite)
    sub(/ \(.*/, "", suite)
    results = 0
}

/^test .* \.\.\. FAILED$/ {
    name = $0
    gsub(/^test | +\.\.\. FAILED$/, "", name)
    names_failed[++count_names_failed] = suite ": " name
}

/^test .* \.\.\. ignored/ {
    name = $0
    sub(/^test /, "", name)
    sub(/ +\.\.\. ignored(, )?/, "  ", name)
    names_ignored[++count_names_ignored] = suite ": " name
}

/^test result: / {
    results++
    passed += $4
    failed += $6
    ignored += $8
    printf "%-36s %5d passed %5d failed %5d skipped\n", suite, $4, $6, $8
}

END {
    close_suite()
    if (status != "passed" && failed == 0) {
        failures[++failed] = status
    }
    for (i = 1; i <= count_names_ignored; i++) print "skipped: " names_ignored[i]
    for (i = 1; i <= count_names_failed; i++) print "FAILED: " names_failed[i]
    for (i in failures) print "FAILED: " failures[i]
    printf "%d passed, %d failed, %d skipped\n", passed, failed, ignored
    exit failed > 0
}
