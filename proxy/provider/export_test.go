package provider

// RowNames are the names of the classifier's rows, in order.
func RowNames() []string {
	names := make([]string, len(rows))
	for i := range rows {
		names[i] = rows[i].name
	}
	return names
}
