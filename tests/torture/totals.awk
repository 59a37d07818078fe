# Adds up the lines that `make torture REPORT=file` appends, and prints the tables of REPORT.md.

function add(table, list,    count, parts, i, pair) {
    count = split(list, parts, ",")
    for (i = 1; i <= count; i++) {
        split(parts[i], pair, ":")
        gsub("_", " ", pair[1])
        sums[table, pair[1]] += pair[2]
        if (!((table, pair[1]) in seen)) {
            seen[table, pair[1]] = 1
            names[table, ++sizes[table]] = pair[1]
        }
    }
}

# Prints a table, the largest number first.
function show(table, head,    i, j, name) {
    if (!sizes[table])
        return
    for (i = 2; i <= sizes[table]; i++)
        for (j = i; j > 1 && sums[table, names[table, j]] > sums[table, names[table, j - 1]]; j--) {
            name = names[table, j]
            names[table, j] = names[table, j - 1]
            names[table, j - 1] = name
        }
    printf "\n| %s | |\n|---|---|\n", head
    for (i = 1; i <= sizes[table]; i++)
        printf "| %s | %d |\n", names[table, i], sums[table, names[table, i]]
}

/^date=/ {
    lines++
    for (i = 1; i <= NF; i++) {
        name = substr($i, 1, index($i, "=") - 1)
        value = substr($i, index($i, "=") + 1)
        if (name ~ /^(modes|ends|by_kind|by_cause|unrecorded_by|repeated_by|commits)$/)
            add(name, value)
        else if (name == "longest_ms")
            longest = value + 0 > longest ? value + 0 : longest
        else if (name == "commit")
            add("commits", value ":1")
        else if (name !~ /^(date|seed|plan)$/)
            total[name] += value
    }
}

END {
    if (!lines) {
        print "no runs" > "/dev/stderr"
        exit 1
    }
    print "| | |\n|---|---|"
    printf "| seeds | %d |\n", lines
    count = split("seconds runs acquisitions faults overlaps_explained writes_refused unrecorded repeated " \
        "overlaps_unexplained lost_waiters orphans violations", order, " ")
    for (i = 1; i <= count; i++) {
        name = order[i]
        gsub("_", " ", name)
        printf "| %s | %d |\n", name, total[order[i]]
    }
    printf "| acquisitions per second | %.1f |\n", total["acquisitions"] / total["seconds"]
    printf "| longest explained overlap | %.1f s |\n", longest / 1000
    show("commits", "seeds by commit")
    show("modes", "acquisitions by kind")
    show("ends", "pglocks by exit status or signal")
    show("by_kind", "faults by kind")
    show("by_cause", "overlaps explained by")
    show("unrecorded_by", "successes not recorded because of")
    show("repeated_by", "successes repeated in an interval after one not recorded because of")
}
